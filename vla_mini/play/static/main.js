// Tabs, light and dark, and what the tabs share. The script and the style of a further tab are loaded when it is first opened.

const tabs = [...document.querySelectorAll('[role="tab"]')];
const mounted = new Set();

/** What the server's answer() of this tab returns. Rejects with an Error of one plain line. */
function poster(name) {
  return async function post(request) {
    let response;
    try {
      response = await fetch(`/api/${name}`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(request),
      });
    } catch {
      throw new Error("The server does not answer: start it again, then reload this page.");
    }
    const answer = await response.json().catch(() => ({ error: `The server failed (status ${response.status}).` }));
    if (!response.ok) throw new Error(answer.error);
    return answer;
  };
}

async function open(tab, { focus = false } = {}) {
  for (const other of tabs) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
  }
  if (focus) tab.focus();
  const name = tab.getAttribute("aria-controls");
  history.replaceState(null, "", `#${name}`);
  if (mounted.has(name)) return;
  mounted.add(name);
  const panel = document.getElementById(name);
  if (name !== "play") {
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: `/static/${name}.css` }));
  }
  try {
    const { mount } = await import(`./${name}.js`);
    await mount(panel, poster(name));
  } catch (error) {
    console.error(error);
    panel.replaceChildren(`This tab cannot be shown: ${error.message}`);
  }
}

for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    open(tabs.at(to % tabs.length), { focus: true });
  });
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

open(tabs.find((tab) => `#${tab.getAttribute("aria-controls")}` === location.hash) ?? tabs[0]);
