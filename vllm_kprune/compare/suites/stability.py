"""Does the model answer in the right language? Language confusion, loops and broken text.

The main metric is the share of answers without any flaw.
LPR, WPR and LCPR follow Marchisio et al. 2024, "Understanding and Mitigating Language Confusion in
LLMs"; `answer_checks.py` lists the differences. Characters of another script, which these miss, are
counted too. Each prompt is answered greedily once (T=0), and sampled as often as the option
`samples` says (T=1).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from vllm_kprune.compare.asking import Task, answered, ask_both
from vllm_kprune.compare.endpoint.messages import Answer
from vllm_kprune.compare.measurements import Example, SuiteResult
from vllm_kprune.compare.options import DATA, MEASURED, CommonOptions
from vllm_kprune.compare.run import Amount, Context, Suite
from vllm_kprune.compare.suites.answer_checks import Checks
from vllm_kprune.compare.suites.spoken import spoken
from vllm_kprune.compare.suites.stability_metrics import NAMES, JudgedSample, measure, uneven
from vllm_kprune.compare.suites.stability_prompts import (
    STABILITY_TOKENS,
    Prompt,
    cautions,
    pick,
    request_of,
    stability_prompts,
)
from vllm_kprune.options import option
from vllm_kprune.vocabulary.language_id import language_identifier

__all__ = ["Stability"]

_NOTE = (
    "Shares of answers. An answer without any flaw is in its language line by line, and not empty, "
    "and has no English word, no character of another script, no loop and no invalid UTF-8. "
    "LPR and WPR follow the code of Marchisio et al. 2024: they are computed for each language of "
    "each source, then averaged over these. LCPR is the harmonic mean of both, or LPR alone for "
    "languages in Latin letters, whose words are not judged. Not judged: code, URLs, lines of "
    "fewer than five words, and, as English words, names, acronyms and words of fewer than four "
    "letters. "
    "An answer without a line to judge counts in none of the three; see empty answers, and answers "
    "with a line to judge."
)
_NO_LANGUAGES = "py3langid is not installed; pip install 'vllm-kprune[compare]'"
_SILENT = "no answer of either side has any text, so there is nothing to judge"
_NO_CHAT = "Asked as completions, not as chats: {}"
_FAILED = "{} of {} answers failed and are left out on both sides."


@dataclass(frozen=True)
class Stability(Suite):
    """The suite `stability`."""

    @dataclass(frozen=True)
    class Options:
        """Its own options."""

        samples: int = option(
            1,
            "stability: number of answers to each prompt at T=1.",
            least=1,
            most=100,
            group=MEASURED,
        )
        benchmark: Path | None = option(
            None,
            "stability: folder with the CSV files of the Language Confusion Benchmark, asked in "
            "addition to kprune's own prompts.",
            existing="folder",
            group=DATA,
        )

    options: Options = Options()
    name = "stability"
    more = "--benchmark FOLDER"
    help = "language confusion (LPR, WPR, LCPR), foreign characters, loops, empty answers"
    metrics = NAMES

    def check(self, common: CommonOptions) -> None:
        """Read the files of the benchmark."""
        if self.options.benchmark:
            stability_prompts(common.languages, self.options.benchmark)

    def cautions(self, common: CommonOptions) -> list[str]:
        """Name the languages that have no prompt."""
        return cautions(
            common.languages, stability_prompts(common.languages, self.options.benchmark)
        )

    def amount(self, common: CommonOptions) -> Amount:
        """One answer at T=0 and `samples` at T=1 to each prompt."""
        prompts = self._prompts(common)
        return Amount(len(prompts), len(prompts) * (1 + self.options.samples), measure="share")

    def _prompts(self, options: CommonOptions) -> list[Prompt]:
        prompts = stability_prompts(options.languages, self.options.benchmark)
        return pick(prompts, options.limit, options.seed)

    def run(self, context: Context) -> SuiteResult:
        """Ask all prompts at both temperatures, and judge the answers."""
        if find_spec("py3langid") is None:
            return SuiteResult(self.name, (), unavailable={"*": _NO_LANGUAGES})
        no_chat = context.missing("chat")
        if no_chat and (no_completion := context.missing("completion")):
            return SuiteResult(self.name, (), unavailable={"*": f"{no_chat}; {no_completion}"})
        checks = Checks(language_identifier())
        options = context.options
        tasks = list(
            _tasks(options, self._prompts(options), self.options.samples, chat=not no_chat)
        )
        asked = [task for _, _, _, task in tasks]
        pairs = ask_both(context, self.name, asked)
        whole = answered(asked, pairs)
        rows, said = spoken(whole)
        kept = {task.key: pair for task, pair in rows}
        if whole and not any(answer.text.strip() for pair in kept.values() for answer in pair):
            return SuiteResult(self.name, (), unavailable={"*": _SILENT}, notes=tuple(said))
        judged = [
            _judge(checks, prompt, temperature, sample, kept[task.key])
            # A pair counts only as a whole, so both sides are judged on the same prompts.
            for prompt, temperature, sample, task in tasks
            if task.key in kept
        ]
        found, unavailable = measure(judged)
        notes = [*self.cautions(options), *said, _NOTE, *uneven(judged)]
        notes += [_NO_CHAT.format(no_chat)] if no_chat else []
        if len(whole) < len(tasks):
            notes.append(_FAILED.format(len(tasks) - len(whole), len(tasks)))
        return SuiteResult(
            self.name,
            tuple(found),
            # One for each prompt and temperature, although more samples were judged.
            examples=tuple(_example(each) for each in judged if each.sample == 0),
            unavailable=unavailable,
            notes=tuple(notes),
        )


def _tasks(
    options: CommonOptions, prompts: Sequence[Prompt], samples: int, *, chat: bool
) -> Iterator[tuple[Prompt, int, int, Task]]:
    """(prompt, temperature, sample, task): one at T=0 and `samples` at T=1, each with its seed."""
    for prompt in prompts:
        # Greedy answers do not vary, so there is one.
        for temperature, sample in [(0, 0), *((1, n) for n in range(samples))]:
            request = request_of(
                prompt,
                chat=chat,
                max_tokens=options.tokens(STABILITY_TOKENS),
                temperature=float(temperature),
                # Samples of one prompt need different seeds, or all would be the same text.
                seed=options.seed + sample,
            )
            key = f"{prompt.key} t{temperature} {sample}"
            yield prompt, temperature, sample, Task(key, request)


def _judge(
    checks: Checks, prompt: Prompt, temperature: int, sample: int, pair: tuple[Answer, Answer]
) -> JudgedSample:
    original, pruned = (
        checks(
            answer.text,
            prompt.language,
            prompt=prompt.text,
            asked=prompt.asked,
            cut=answer.finish_reason == "length",
        )
        for answer in pair
    )
    first, second = (
        checks.language_of(answer.reasoning) if answer.reasoning else None for answer in pair
    )
    return JudgedSample(prompt, temperature, sample, pair, (original, pruned), (first, second))


def _example(each: JudgedSample) -> Example:
    sides = [bool(finding.spans) for finding in each.findings]
    flawed = {
        (False, False): "none",
        (True, False): "original",
        (False, True): "pruned",
        (True, True): "both",
    }
    return Example(
        item=each.prompt.key,
        prompt=each.prompt.text,
        answers=(each.answers[0].text, each.answers[1].text),
        labels={
            "language": each.prompt.language,
            "temperature": str(each.temperature),
            "flawed": flawed[sides[0], sides[1]],
        },
        spans=(each.findings[0].spans, each.findings[1].spans),
    )
