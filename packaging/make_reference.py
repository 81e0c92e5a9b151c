"""Make `docs/reference/*.md` from the code: commands, options, HTTP, Python, file formats.

.venv/bin/python packaging/make_reference.py           write the pages
.venv/bin/python packaging/make_reference.py --check   name the stale ones; exit code 1 if any

What users can call or set is declared once, in the package. These pages repeat it, so they are
made and not written; `tests/docs` fails when a page is stale. Answers of a live server cannot be
made here: `packaging/http_samples/` has recorded ones, and the tests compare their keys with the
code.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import reference_files
import reference_options
import reference_python
import reference_seams

ROOT = Path(__file__).resolve().parent.parent
PAGES_FOLDER = ROOT / "docs" / "reference"
SAMPLES = ROOT / "packaging" / "http_samples"
MARK = "<!-- Made by packaging/make_reference.py; edit the code or that script, not this page. -->"

HTTP_PAGE = """\
# HTTP

A server with kprune speaks vLLM's OpenAI-compatible API. Requests carry kprune's options in
`vllm_xargs`, a field that vLLM itself defines; see
[request options](server.md#request-options). `--plugin kprune` adds three routes.

## A request with options

```bash
curl http://localhost:8000/v1/completions -H 'Content-Type: application/json' -d '{completion}'
```

With the `openai` client, the same field goes into `extra_body`:

```python
client.completions.create(
    model="build/enko",
    prompt="대한민국의 수도는",
    extra_body={{"vllm_xargs": {{"kprune_languages": "ko,en"}}}},
)
```

`vllm_xargs` holds texts, numbers and lists of these. Switches are `true` and `false`, `1` and
`0`, or `"true"` and `"false"`.

## Errors

A mistake in an option or a mark is answered with HTTP 400, and the message names what is known.
In a stream, the error is the first event.

```json
{error}
```

## Response headers

A server with an input pruner adds these headers to every answer whose prompt it rendered:

| header | meaning |
|---|---|
| `x-kprune-prompt-tokens-original` | prompt tokens before pruning |
| `x-kprune-prompt-tokens-kept` | prompt tokens that the model read; equals `usage.prompt_tokens` |
| `x-kprune-segments-pruned` | parts of the prompt that were shortened |

## GET /kprune

What this server does: profile, sizes, versions, default guard, input pruner. It needs no API key
and shows no local path.

```bash
curl http://localhost:8000/kprune
```

```json
{status}
```

`active` is false when the served model is not pruned; then only `versions`, `head`, `guard`,
`usage` and `input_pruner` are present. `vocabulary_bytes` is null when the base model's files are
not there (`--load-format dummy`). `input_pruner.min_tokens` is null when the server found that
pruning saves no time; requests can still set `kprune_min_tokens`.

## GET /kprune/usage

How often each token occurs in this server's answers, if it was started with `--kprune-usage`:
evidence for `kprune build --usage`. [A profile from traffic](../traffic.md) says what is counted,
and what not. The route asks for the API key if the server has one.

```json
{usage}
```

`ids` are those of the original tokenizer; `occurrences` and `in_requests` have a number for each.
Tokens in fewer than `floor` requests are in `below_floor` only. All numbers are those of the last
release: there is one whenever `floor` further requests have been answered.

| status | reason |
|---|---|
| 401 | the API key is missing or wrong |
| 404 | the server does not count tokens |

## POST /kprune/prune

What input pruning would drop from a prompt. Nothing is generated. The route asks for the API key
if the server has one.

```bash
curl http://localhost:8000/kprune/prune -H 'Content-Type: application/json' -d '{prune_request}'
```

```json
{prune}
```

`start` and `end` are character positions in `text`. `forced` pieces stay whatever their score.
Blanks between words are pieces too. Where there is none between two words that did not touch,
`kept` has a blank that is in no piece. `left_whole` is `code`, `json`, `table` or `list` for a text
that was not pruned because its layout matters, otherwise null.
Send either `prompt` (one text), or `messages` with optional `documents`. The other keys are the
[request options](server.md#request-options) without their prefix, except `strict` and
`min_tokens`. At most 1 MiB and 32,768 tokens are taken.

| status | reason |
|---|---|
| 400 | the server has no input pruner, or the body has a mistake |
| 401 | the API key is missing or wrong |
| 503 | too many previews are waiting; try again |

## GET /metrics

kprune's counters appear among vLLM's; [operating](../operating.md#metrics) lists them.
"""


_FLAT = re.compile(r"[\[{][^\[\]{}]*[\]}]")


def _sample(name: str) -> str:
    """A recorded body, laid out: what holds only plain values is one line, if it fits."""
    value = json.loads((SAMPLES / name).read_text(encoding="utf-8"))
    return _FLAT.sub(_joined, json.dumps(value, ensure_ascii=False, indent=2))


def _joined(found: re.Match[str]) -> str:
    """A list or an object on one line; as it was if that is too long."""
    line = re.sub(r"\s*\n\s*", " ", found[0])
    line = re.sub(r"^([\[{]) | ([\]}])$", r"\1\2", line)
    return line if len(line) <= 90 else found[0]


def _one_line(name: str) -> str:
    value = json.loads((SAMPLES / name).read_text(encoding="utf-8"))
    return json.dumps(value, ensure_ascii=False)


def http_page() -> str:
    """Routes, headers and errors, with bodies that a server really answered."""
    return HTTP_PAGE.format(
        completion=_one_line("completion_request.json"),
        error=_sample("error.json"),
        status=_sample("status.json"),
        usage=_sample("usage.json"),
        prune_request=_one_line("prune_request.json"),
        prune=_sample("prune.json"),
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": reference_options.cli_page,
    "server.md": reference_options.server_page,
    "http.md": http_page,
    "python.md": reference_python.python_page,
    "profile.md": reference_files.profile_page,
    "kprune-json.md": reference_files.manifest_page,
    "report-json.md": reference_files.report_page,
    "vllm-seams.md": reference_seams.seams_page,
}


def pages() -> Iterator[tuple[Path, str]]:
    """(path, text) of every reference page."""
    for name, make in PAGES.items():
        title, _, rest = make().partition("\n")
        yield PAGES_FOLDER / name, f"{title}\n\n{MARK}\n{rest.rstrip()}\n"


def stale() -> list[Path]:
    """The committed pages that differ from what the code makes now, or are missing."""
    return [
        path
        for path, text in pages()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, name stale pages")
    if parser.parse_args().check:
        names = ", ".join(path.name for path in stale())
        sys.exit(f"stale: {names}; run packaging/make_reference.py" if names else 0)
    PAGES_FOLDER.mkdir(parents=True, exist_ok=True)
    for path, text in pages():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
