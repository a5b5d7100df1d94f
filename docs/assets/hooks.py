"""What the site needs beside mkdocs' plugins: links to files and folders outside of docs/ lead to pages that show them.
Pages in docs/ko/ are marked as Korean, are in the navigation, and behind the button that chooses the language."""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

LINK = re.compile(r"(?<=\]\()[^)#:\s]+")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".json": "json"}


def on_config(config):
    if korean := sorted(path.name for path in Path(config.docs_dir, "ko").glob("*.md")):
        config.nav.append({"한국어": [f"ko/{name}" for name in korean]})
        config.extra["alternate"] = [
            {"name": "English", "link": "index.html", "lang": "en"},
            {"name": "한국어", "link": f"ko/{korean[0].replace('.md', '.html')}", "lang": "ko"},
        ]


def on_files(files, config):
    for page in files.documentation_pages():
        for target in LINK.findall(page.content_string):
            source = _outside(target, page)
            uri = f"source/{source}.md"
            if source and uri not in files.src_uris and (path := Path(config.config_file_path).parent / source).exists():
                names = sorted(each.name for each in path.glob("[!_]*")) if path.is_dir() else []
                text = "\n".join(names) or path.read_text(encoding="utf-8")
                block = f"# {source}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"
                files.append(File.generated(config, uri, content=f"---\nhide: [toc]\nsearch: {{exclude: true}}\n---\n{block}"))


def on_page_markdown(markdown, page, config, files):
    def shown(match):
        source = _outside(match[0], page.file)
        return posixpath.relpath(f"source/{source}.md", posixpath.dirname(page.file.src_uri)) if source else match[0]

    return LINK.sub(shown, markdown)


def on_post_page(output, page, config):
    return output.replace('<html lang="en"', '<html lang="ko"', 1) if page.file.src_uri.startswith("ko/") else output


def _outside(target, page):
    """The path, in the repository, of a file outside of docs/ that a page links to; None for any other target."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.src_uri), target))
    return None if path.startswith(("docs/", "..")) or path == "docs" else path
