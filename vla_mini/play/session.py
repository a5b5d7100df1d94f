"""One visitor's scene: an environment, a policy that acts in it, and all steps so far. No web in it.

    observation ──Controller──▶ action ──Environment──▶ next observation
         └── sensitivity(action) by pixels, words, state; attention

Environments cannot go back, but each is fully determined by its seed and what happened since: a change in the past resets it,
and repeats all changes and actions up to there. Steps that came later are forgotten then.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vla_mini.acting import Controller, observe
from vla_mini.autograd.saliency import attention_maps, sensitivity
from vla_mini.envs.spec import Environment
from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.parts import UNKNOWN_TOKENS
from vla_mini.play.scenes import table
from vla_mini.play.scenes.recording import Recording
from vla_mini.policy import Policy

SAVED = "saved policy"
Policies = dict[str, Callable[[], Policy]]  # by name; SAVED is among them
CHANGES = {"move": table.move, "recolour": table.recolour}  # of toy_pick's scene
Change = tuple[str, tuple[Any, ...]]  # a name and arguments


class Look(NamedTuple):
    """An action of the policy, and what it depends on. With `execute` > 1 it may be of a chunk that began some steps before:
    then all but `action` is about the observation of that step, from which it was predicted."""

    policy: str
    action: np.ndarray  # (a,) raw units
    step: int  # from whose observation it was predicted
    attention: np.ndarray | None  # (k, h, w), None where the trunk has no attention maps
    pixels: np.ndarray  # (k, h, w)
    words: list[tuple[str, float]]
    state: list[tuple[str, float]]


@dataclass
class Step:
    """One moment of an episode."""

    observation: dict[str, Any]
    outcome: tuple[str, str]  # as `table.outcome` gives it
    changes: list[Change] = field(default_factory=list)  # that the visitor made at this moment
    notes: list[str] = field(default_factory=list)  # what of it training never showed, a sentence each
    handles: list[dict[str, Any]] = field(default_factory=list)  # what can be dragged (table.py)
    look: Look | None = None
    other: np.ndarray | None = None  # (a,) what the expert does here while it acts, or what was recorded
    executed: np.ndarray | None = None  # (a,) None at the newest step


class Session:
    """What a visitor can do. Methods are called one after another; they raise ValueError, in plain words, for what is not
    possible.

    - env: its own, closed by `close`
    - policies: what loads each, by name; the saved one acts until another is chosen
    - seed: the number of the first scene
    - execute: actions of a chunk that are executed before the next is predicted; None: as saved with the policy
    """

    def __init__(self, env: Any, policies: Policies, *, seed: int = 0, execute: int | None = 1) -> None:
        self.env, self.policies, self.execute = env, policies, execute
        self.unwrapped: Environment = env.unwrapped
        self.spec = self.unwrapped.env_spec
        self.expert, self.steps = False, []
        self.use_policy(SAVED)
        self.reset(seed)

    # ---- what a visitor does

    def reset(self, seed: int | None = None) -> None:
        """Begin scene number `seed`, or the present one, as it is without any change."""
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**31):
            raise ValueError(f"scene {seed}: give a whole number from 0 to {2**31 - 1}")
        self.seed = self.seed if seed is None else seed
        self.steps, self.position = [], 0
        self._add(*self._restart(), over=False)
        self._look_anew()

    def step(self) -> None:
        """Show the next step; the newest one is executed first, with the action of the policy, or of the expert."""
        if self.position == len(self.steps) - 1:
            newest = self.steps[-1]
            if newest.outcome[0] != "running":
                raise ValueError("The episode is over: go back some steps, type other words, or begin a new scene.")
            newest.executed = newest.other if self.expert else self._clip(newest.look.action)
            observation, _, terminated, truncated, info = self.env.step(newest.executed)
            self._add(observation, info, over=terminated or truncated)
            self._look()
        self.position += 1

    def go(self, step: int) -> None:
        """Show an earlier step, or a later one that there has been."""
        if not (isinstance(step, int) and 0 <= step < len(self.steps)):
            raise ValueError(f"There is no step {step}: the steps so far are 0 to {len(self.steps) - 1}.")
        self.position = step

    def say(self, instruction: str) -> None:
        """Give another instruction from the present step on; where the episode is over, from its start on."""
        if not isinstance(instruction, str):
            raise ValueError(f"{instruction!r} is no instruction: give a text")
        instruction.encode()  # UnicodeEncodeError, a ValueError, for half a character
        if self.steps[self.position].outcome[0] != "running":
            self.position = 0
        self._change("say", instruction)

    def change(self, name: str, *arguments: Any) -> None:
        """Change toy_pick's scene, by the function CHANGES[name] of table.py."""
        if not isinstance(self.unwrapped, ToyPick):
            raise ValueError(f"Nothing can be moved in {self.spec.id}.")
        if name not in CHANGES:
            raise ValueError(f"There is no change {name!r}: choose from {', '.join(CHANGES)}.")
        if self.steps[self.position].outcome[0] != "running":
            raise ValueError("The episode is over: go back some steps, and then change the scene.")
        self._change(name, *arguments)

    def let_expert_act(self, expert: bool) -> None:
        """Whether the scripted expert acts from the present step on, and not the policy."""
        if expert and (isinstance(self.unwrapped, Recording) or not self.spec.has_expert):
            raise ValueError(f"{self.spec.id} has no expert that could act.")
        self._go_live()
        if expert and isinstance(self.unwrapped, ToyPick) and self.unwrapped.scene.target < 0:
            raise ValueError("The expert needs an instruction that names one object of this scene.")
        self.expert = expert
        self._look_anew()

    def use_policy(self, name: str) -> None:
        """Let another policy act from the present step on."""
        if name not in self.policies:
            raise ValueError(f"There is no policy {name!r}: choose from {', '.join(self.policies)}.")
        policy = self.policies[name]()  # which may be damaged: then nothing changes
        self.controller, self.policy_name = Controller(policy, execute=self.execute, ensemble="none"), name
        if self.steps:
            self._go_live()
            self._look_anew()

    def close(self) -> None:
        self.env.close()

    @property
    def policy(self) -> Policy:
        return self.controller.policy

    # ---- what there is to see

    @property
    def shown(self) -> Step:
        """The step that is shown."""
        return self.steps[self.position]

    def sentences(self) -> list[str]:
        """The environment's own instructions; toy_pick's are those of the present scene."""
        if isinstance(self.unwrapped, ToyPick):
            return table.sentences(self.unwrapped)
        return list(dict.fromkeys(self.spec.tasks.values()))

    # ---- inside

    def _restart(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The observation with which the scene begins, and its info."""
        options = {} if isinstance(self.unwrapped, Recording) else {"purpose": "evaluation", "seed": 0}
        observation, info = self.env.reset(seed=self.seed, options=options)
        self.instruction = observation["instruction"]
        return observation, info

    def _apply(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Change the environment as it is now."""
        if name != "say":
            CHANGES[name](self.unwrapped, *arguments)
            return
        (self.instruction,) = arguments
        if isinstance(self.unwrapped, ToyPick):
            table.say(self.unwrapped, self.instruction)

    def _change(self, name: str, *arguments: Any) -> None:
        """Make a change at the present step, and let the policy act anew from there."""
        self._go_live()
        self._apply(name, arguments)
        step = self.steps[-1]
        # Of a drag, only where it ends counts.
        same = bool(step.changes) and name == "move" and step.changes[-1][0] == name and step.changes[-1][1][0] == arguments[0]
        step.changes[len(step.changes) - same :] = [(name, arguments)]
        if isinstance(self.unwrapped, ToyPick):
            step.observation, step.outcome = self.unwrapped.observe(), table.outcome(self.unwrapped, over=False)
            self.expert = self.expert and self.unwrapped.scene.target >= 0
        step.observation = step.observation | {"instruction": self.instruction}
        self._look_anew()

    def _go_live(self) -> None:
        """Make the present step the newest, and the environment as it was then."""
        if self.position == len(self.steps) - 1:
            return
        del self.steps[self.position + 1 :]
        self._restart()
        for step in self.steps:
            for change in step.changes:
                self._apply(*change)
            if step is not self.steps[-1]:
                self.env.step(step.executed)
        self.shown.executed = None

    def _add(self, observation: Mapping[str, Any], info: Mapping[str, Any], *, over: bool) -> None:
        observation = copy.deepcopy(dict(observation)) | {"instruction": self.instruction}
        self.steps.append(Step(observation, self._outcome(info, over=over)))

    def _outcome(self, info: Mapping[str, Any], *, over: bool) -> tuple[str, str]:
        if isinstance(self.unwrapped, ToyPick):
            return table.outcome(self.unwrapped, over=over)
        if not over:
            return "running", f"The task of this scene: {self.spec.tasks[info['task']]}" if "task" in info else ""
        if isinstance(self.unwrapped, Recording):
            return "over", "This is the end of the recorded episode."
        if info["success"]:
            return "success", f"Success after {len(self.steps)} steps."
        rates = "".join(f", {name.replace('_', ' ')} {float(info[name]):.2f}" for name in self.spec.rates)
        return "failure", f"The episode is over after {len(self.steps)} steps, without success{rates}."

    def _clip(self, action: np.ndarray) -> np.ndarray:
        """Within the environment's limits."""
        space = self.unwrapped.action_space
        return np.clip(action, space.low, space.high)

    def _past(self) -> list[dict[str, Any]]:
        """The observations before the newest that the policy takes, the newest first."""
        return [step.observation for step in self.steps[-2 : -1 - self.policy.history : -1]]

    def _look_anew(self) -> None:
        """Let the policy predict a new chunk, of the newest step."""
        self.controller.reset(self.seed)
        for observation in reversed(self._past()):
            self.controller.observe(observation)
        self._age = 0
        self._look()

    def _look(self) -> None:
        """The policy's action in the newest step, and what it depends on."""
        step, policy = self.steps[-1], self.policy
        age = self._age % self.controller.execute
        if age == 0:
            self._observed = observe(policy, [step.observation], past=[self._past()])
        action, self._age = self.controller.step(step.observation), self._age + 1
        found, attention = sensitivity(policy, self._observed, action=age), attention_maps(policy, self._observed)
        cameras, states = len(policy.features.cameras), policy.features.state
        step.look = Look(
            self.policy_name,
            action,
            len(self.steps) - 1 - age,
            None if attention is None else attention[0, :cameras].numpy(force=True),
            found.pixels[0, :cameras].numpy(force=True),
            list(zip(self._words(), found.words[0].tolist(), strict=True)),
            list(zip(states, found.state[0].tolist(), strict=False)),
        )
        step.other = self.unwrapped.expert_action() if self.expert or isinstance(self.unwrapped, Recording) else None
        step.notes = self._notes()
        step.handles = table.handles(self.unwrapped) if isinstance(self.unwrapped, ToyPick) else []

    def _words(self) -> list[str]:
        """The tokens of the instruction, with the words themselves where they are unknown."""
        instruction = self.steps[-1].observation["instruction"]
        unknown = iter(self.policy.unknown_words(instruction))
        return [next(unknown) if token in UNKNOWN_TOKENS else token for token in self.policy.language.tokens_of(instruction)]

    def _notes(self) -> list[str]:
        """What of the instruction and of the present scene training never showed."""
        instruction, language = self.instruction, self.policy.language
        found = table.unusual(self.unwrapped) if isinstance(self.unwrapped, ToyPick) else []
        if unknown := list(dict.fromkeys(self.policy.unknown_words(instruction))):
            words = ", ".join(f"“{word[:40]}”" for word in unknown[:6]) + (
                f" and {len(unknown) - 6} more" if unknown[6:] else ""
            )
            found.append(f"The policy does not know {words}: all unknown words are the same to it.")
        if language.tokenizer.encode(instruction).overflowing:
            found.append(f"The policy reads only the first {len(language.tokens_of(instruction))} tokens of these words.")
        return found
