"""What is allowed, decided without the guard's tables: by characters, and bytes by brute force."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import regex
from hypothesis import settings
from tokenizers import Tokenizer

from vllm_kprune.guard.automaton import Automaton, build_automaton
from vllm_kprune.guard.characters import allowed_characters
from vllm_kprune.guard.policy import GuardPolicy, parse_policy
from vllm_kprune.guard.spelling import TokenSpellings
from vllm_kprune.guard.tokens import BYTE, CONTROL, PRESENT, SPECIAL
from vllm_kprune.profile import LANGUAGES

# Width of the logits: Qwen3's embedding has rows past its tokenizer, Gemma-3's lacks a token's.
NUM_ROWS = {"gemma3": 262_144, "qwen3": 151_936, "llama3_1": 128_256}
SETTINGS = settings(max_examples=25)


def policy_of(**options: object) -> GuardPolicy:
    policy = parse_policy(options)
    assert policy is not None
    return policy


class Vocabulary:
    """A published tokenizer, its spellings, and automatons for it."""

    def __init__(self, name: str, path: Path, spellings: TokenSpellings) -> None:
        self.name = name
        self.num_rows = NUM_ROWS[name]
        self.tokenizer = Tokenizer.from_file(str(path))
        self.spellings = spellings
        self.automaton: Callable[[GuardPolicy], Automaton] = cache(self._build)

    def _build(self, policy: GuardPolicy) -> Automaton:
        return build_automaton(self.spellings, policy, self.num_rows)

    def texts(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        return self.tokenizer.decode_batch(ids, skip_special_tokens=skip_special_tokens)


@cache
def is_allowed(character: str, policy: GuardPolicy) -> bool:
    """The rules of `guard/characters.py`, one character at a time."""
    if character in policy.allow:
        return True
    if character == "\ufffd" or _has(character, "Unknown"):
        return False
    if not policy.digits and regex.match(r"\p{N}", character):
        return False
    if not (policy.punctuation and policy.emoji) and regex.match(r"[\p{P}\p{S}]", character):
        raise NotImplementedError("tested by examples")
    if policy.languages and (
        regex.match(r"[A-Za-zⅠ-ↂↅ-ↈ]", character) or _is_loan(character, policy)
    ):
        return True
    if policy.hanja == "ksx1001" and _has(character, "Han") and _is_ksx1001(character):
        return True
    wanted = {script for code in policy.languages for script in LANGUAGES[code].scripts}
    wanted |= {*policy.scripts, *(["Han"] if policy.hanja == "all" else [])}
    if any(_extends(character, script) for script in wanted):
        return True
    if not (_has(character, "Common") or _has(character, "Inherited")):
        return False
    neutral = ("Common", "Inherited", "Latin", "Greek")
    return any(_extends(character, script) for script in neutral)


def _is_loan(character: str, policy: GuardPolicy) -> bool:
    """Is it a Latin letter beyond ASCII that the policy lets other languages use?"""
    if policy.latin == "all":
        return _extends(character, "Latin")
    return policy.latin == "european" and (
        (0xC0 <= ord(character) < 0x180 and character.isalpha()) or character in "ȘșȚț"
    )


def _has(character: str, script: str) -> bool:
    return bool(regex.match(rf"\p{{Script={script}}}", character))


def _extends(character: str, script: str) -> bool:
    return bool(regex.match(rf"\p{{Script_Extensions={script}}}", character))


def _is_ksx1001(character: str) -> bool:
    try:
        return len(character.encode("euc_kr")) == 2
    except UnicodeEncodeError:
        return False


def foreign(text: str, policy: GuardPolicy) -> set[str]:
    """The characters of a text that the policy does not allow."""
    return {character for character in set(text) if not is_allowed(character, policy)}


class BruteForce:
    """Every allowed character (`test_characters.py` tests these), every beginning of its bytes."""

    def __init__(self, policy: GuardPolicy) -> None:
        self.characters = {chr(code) for code in np.flatnonzero(allowed_characters(policy))}
        self.beginnings = {
            c.encode()[:n] for c in self.characters for n in range(1, len(c.encode()))
        } | {b""}

    def allows(self, pending: bytes, token: bytes) -> bool:
        """May these bytes follow an unfinished character?"""
        text = pending + token
        for end in range(len(text), max(len(text) - 4, -1), -1):
            if text[end:] in self.beginnings:
                try:
                    whole = text[:end].decode()
                except UnicodeDecodeError:
                    continue
                return all(character in self.characters for character in whole)
        return False


class PhaseOracle:
    """What may come next where a model reasons and then answers: by brute force, token by token.

    `json`: the phases in which no escaped u may be written.
    """

    def __init__(
        self,
        spellings: TokenSpellings,
        answer: BruteForce | None,
        reasoning: BruteForce | None,
        start: int | None,
        end: int,
        json: Collection[str] = (),
    ) -> None:
        self.spellings = spellings
        self.forces = {"before": answer, "answer": answer, "reasoning": reasoning}
        self.start, self.end, self.json = start, end, json
        self.present = spellings.flags & PRESENT != 0
        self._judged: dict[tuple[object, ...], np.ndarray] = {}

    def phase(self, prompt: Sequence[int], output: Sequence[int]) -> str:
        return self._phase(prompt, output)[0]

    def _phase(self, prompt: Sequence[int], output: Sequence[int]) -> tuple[str, int]:
        """The phase, and how many tokens came before it."""
        inside, begin = self.start is None, 0
        for n, token_id in enumerate(prompt):
            if token_id == self.start:
                inside, begin = True, n + 1
            inside = inside and token_id != self.end
        phase, begin = ("reasoning", begin) if inside else ("before", 0)
        for n, token_id in enumerate(output, start=len(prompt)):
            if phase == "reasoning" and token_id == self.end:
                phase, begin = "answer", n + 1
            elif phase == "before" and token_id == self.start:
                phase, begin = "reasoning", n + 1
            elif phase == "before" and (token_id == self.end or not self._is_blank(token_id)):
                phase = "answer"
        return phase, begin

    def allowed(self, prompt: Sequence[int], output: Sequence[int]) -> np.ndarray:
        """Which tokens may follow, bool [num_tokens]."""
        phase, begin = self._phase(prompt, output)
        ids, force = [*prompt, *output], self.forces[phase]
        if force is None:
            return self.present
        pending = self._pending(force, ids)
        slashes = self._backslashes(ids[begin:]) if phase in self.json and not pending else 0
        key = (id(force), pending, slashes, phase in self.json)
        if key not in self._judged:
            self._judged[key] = np.array(
                [
                    self._judge(force, pending, i)
                    and not (phase in self.json and self._writes_u(slashes, i))
                    for i in range(self.spellings.num_tokens)
                ]
            )
        return self._judged[key]

    def _backslashes(self, ids: Sequence[int]) -> int:
        text = b""
        for token_id in ids:
            if not self._is_control(token_id):
                text += self.spellings.bytes_of(token_id)
            elif not self.spellings.flags_of(token_id) & SPECIAL:
                text = b""
        return len(text) - len(text.rstrip(b"\\"))

    def _writes_u(self, slashes: int, token_id: int) -> bool:
        """Does a token write an escaped u after this many backslashes?"""
        text = b"\\" * slashes + self.spellings.bytes_of(token_id)
        return not self._is_control(token_id) and bool(regex.search(rb"(?<!\\)(\\\\)*\\u", text))

    def _is_control(self, token_id: int) -> bool:
        marked = token_id in (self.start, self.end)
        return marked or bool(self.spellings.flags_of(token_id) & CONTROL)

    def _is_blank(self, token_id: int) -> bool:
        text = self.spellings.bytes_of(token_id).decode(errors="replace")
        return self._is_control(token_id) or not text.strip()

    def _judge(self, force: BruteForce, pending: bytes | None, token_id: int) -> bool:
        """`pending` are the bytes of an unfinished character; None: a broken run of byte tokens."""
        flags, token = self.spellings.flags_of(token_id), self.spellings.bytes_of(token_id)
        if not flags & PRESENT or self._is_control(token_id):
            return bool(flags & PRESENT) and not pending
        if pending is None:
            return not flags & BYTE and force.allows(b"", token)
        if pending and self.spellings.kind == "byte_fallback" and not flags & BYTE:
            return False
        return force.allows(pending, token) and bool(token or not pending)

    def _pending(self, force: BruteForce, ids: Sequence[int]) -> bytes | None:
        """The unfinished character at the end of a text, if an allowed one begins like this."""
        is_fallback = self.spellings.kind == "byte_fallback"
        runs = [b""]  # what is decoded together; a special token cuts a run, and may be skipped
        for token_id in ids:
            flags = self.spellings.flags_of(token_id)
            if flags & SPECIAL:
                runs = [*runs, b""] if is_fallback else [b""]
            elif self._is_control(token_id) or (is_fallback and not flags & BYTE):
                runs = [b""]
            else:
                runs[-1] += self.spellings.bytes_of(token_id)
        *cut, last = runs
        whole = last
        while whole[-1:] and len(last) - len(whole) < 4 and not _is_text(whole):
            whole = whole[:-1]
        pending = last[len(whole) :] if _is_text(whole) else None
        if is_fallback:
            is_sound = all(map(_is_text, cut)) and pending in force.beginnings
            return pending if is_sound else None
        # Byte-level text recovers by itself: only the last few bytes matter.
        ends = (last[-n:] for n in (3, 2, 1) if len(last) >= n)
        return next((end for end in ends if end in force.beginnings and end[0] >= 0xC2), b"")


def _is_text(text: bytes) -> bool:
    return text == text.decode(errors="ignore").encode()


class Walks:
    """Many random texts at once, sampled from what an automaton allows."""

    def __init__(self, automaton: Automaton, count: int, seed: int) -> None:
        self.automaton = automaton
        self.random = np.random.default_rng(seed)
        self.states = np.zeros(count, np.int64)
        self.steps: list[np.ndarray] = []
        self._classes = automaton.token_class.numpy()
        self._next = automaton.class_next.numpy()
        self._order = np.argsort(self._classes, kind="stable")
        self._first = np.searchsorted(
            self._classes[self._order], np.arange(self._next.shape[1] + 1)
        )

    def step(self, home: bool = False) -> None:
        """One token for each walk, drawn by class so that parts of characters are frequent.

        Half of the tokens between characters are drawn from all. With `home`, a walk inside a
        character takes the shortest way out, and others take a token of text.
        """
        chosen = np.empty(len(self.states), np.int64)
        for state in np.unique(self.states):
            rows = np.flatnonzero(self.states == state)
            classes = self._open(int(state))
            if home:
                classes = self._nearest(classes, int(state))
            picked = self.random.choice(classes, len(rows))
            if state == 0 and not home:
                plain = self.random.random(len(rows)) < 0.5
                weights = np.diff(self._first)[classes]
                picked[plain] = self.random.choice(classes, plain.sum(), p=weights / weights.sum())
            sizes = self._first[picked + 1] - self._first[picked]
            offsets = (self.random.random(len(rows)) * sizes).astype(np.int64)
            chosen[rows] = self._order[self._first[picked] + offsets]
        self.states = self._next[self.states, self._classes[chosen]].astype(np.int64)
        assert (self.states >= 0).all()
        self.steps.append(chosen)

    def _open(self, state: int) -> np.ndarray:
        following = np.flatnonzero(self._next[state] >= 0)
        classes = following[np.diff(self._first)[following] > 0]
        assert len(classes), f"state {state} is a dead end"
        return classes

    def _nearest(self, classes: np.ndarray, state: int) -> np.ndarray:
        after = self._next[state, classes]
        if (after == 0).any():
            return classes[after == 0]
        two_steps = [c for c, s in zip(classes, after, strict=True) if (self._next[s] == 0).any()]
        return np.array(two_steps) if two_steps else classes

    def finish(self) -> None:
        """Go on until no walk is inside a character."""
        for _ in range(4):
            self.step(home=True)
        assert not self.states.any()

    def ids(self) -> list[list[int]]:
        return np.stack(self.steps, axis=1).tolist()


def refused_tokens(automaton: Automaton, lines: Iterable[Sequence[int]]) -> list[int | None]:
    """For each line of ids the position of its first refused token, or None."""
    found: list[int | None] = []
    for ids in lines:
        state, position = 0, None
        classes = automaton.token_class.numpy()
        following = automaton.class_next.numpy()
        for n, token_id in enumerate(ids):
            state = following[state, classes[token_id]] if token_id < len(classes) else -1
            if state < 0:
                position = n
                break
        found.append(position)
    return found
