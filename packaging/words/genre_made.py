"""Texts that no package has as such: Korean dates, noise, stack traces, words in hanja."""

import base64
import json
import random
import re
import string
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import regex
import yaml
from genre_texts import files
from make_tables import HERE, PIECE, Rates, members

__all__ = ["dates", "hanja_words", "noise", "traces"]

MADE = yaml.safe_load((HERE / "genres.yaml").read_text(encoding="utf-8"))["made"]
AFTER = (" ", ". ", ", ", "\n", ") ", "~", "/", "; ", " / ", " - ", " | ", ".\n", "),")


class _Korean:
    """Dates, amounts and quantities as Korean texts write them."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def below(self, least: int, most: int) -> int:
        return self.chance.randrange(least, most)

    def money(self) -> str:
        n = self.below
        return self.chance.choice(
            [
                *(f"{n(1, 1000):,}원", f"{n(1000, 10**7):,}원", f"{n(1, 10000):,}만 원"),
                f"{n(1, 100)}억 {n(1, 10000):,}만 원",
                f"{n(1, 20)}조 {n(1, 10000):,}억 원",
                *(f"₩{n(1000, 10**7):,}", f"${n(1, 10000):,}.{n(0, 100):02}", f"€{n(1, 10000):,}"),
                *(f"{n(1, 1000)}달러", f"{n(1000, 10**6):,}천원", f"USD {n(1, 10**6):,}"),
                *(f"KRW {n(1000, 10**7):,}", f"({n(100, 100000):,}원)", f"-{n(100, 100000):,}"),
            ]
        )

    def date(self) -> str:
        n = self.below
        year, month, day = n(1950, 2031), n(1, 13), n(1, 29)
        weekday, iso = self.chance.choice("월화수목금토일"), f"{year}-{month:02}-{day:02}"
        clock = f"{n(0, 24):02}:{n(0, 60):02}"
        return self.chance.choice(
            [
                *(f"{year}년 {month}월 {day}일", f"{year}.{month}.{day}.", iso),
                *(f"{year}. {month}. {day}.", f"{year}/{month:02}/{day:02}", f"{year}년대"),
                *(f"{month}월 {day}일({weekday})", f"{month}/{day}({weekday})", f"{n(1, 22)}세기"),
                *(f"’{year % 100:02}.{month}.{day}", f"'{year % 100:02}.{month}.", clock),
                *(f"제{n(1, 400)}조", f"제{year}-{n(1, 999):04}호", f"{clock}:{n(0, 60):02}"),
                *(f"{year}년 {n(1, 5)}분기", f"{year}~{year + n(1, 5)}년", f"{iso} {clock}"),
                *(f"{year}.{month}.{day} ~ {month}.{day}", f"{iso}T{clock}:00+09:00"),
                *(f"0{n(2, 65)}-{n(100, 9999)}-{n(1000, 9999)}", f"{year}{month:02}{day:02}"),
                f"010-{n(1000, 9999)}-{n(1000, 9999)}",
            ]
        )

    def quantity(self) -> str:
        n, unit = self.below, self.chance.choice(MADE["units"].split())
        value = self.chance.choice(
            [str(n(1, 1000)), f"{n(0, 1000)}.{n(0, 100)}", f"{n(1, 100000):,}"]
        )
        return self.chance.choice(
            [
                *(f"{value}{unit}", f"{value} {unit}", f"{value}~{n(1, 100)}{unit}", f"{value}배"),
                *(f"({value}{unit})", f"{n(1, 4000)}×{n(1, 4000)}", f"±{value}{unit}"),
                *(f"{value}%", f"▲{value}%", f"▼{value}%", f"△{value}"),
            ]
        )


def dates() -> Rates:
    """Pieces of Korean dates, amounts of money and quantities."""
    korean = _Korean(11)
    rates: Rates = defaultdict(float)
    for _ in range(40_000):
        chance = korean.chance
        before = chance.choice(["", "", " ", "(", ", ", " · "])
        made = chance.choice([korean.money, korean.date, korean.quantity])()
        after = chance.choice([""] * 3 + MADE["particles"].split()) + chance.choice(AFTER)
        for piece in PIECE.findall(before + made + after):
            rates[piece] += 1
    return rates


def hanja_words(folder: Path) -> dict[str, list[str]]:
    """Reading -> its spellings in hanja, of two to four characters."""
    archive = next((folder / "hanja").rglob("libhangul-data_*.deb"))
    [content] = [text for name, text in members(archive, 1 << 24) if name.endswith("/hanja.txt")]
    spellings = defaultdict(list)
    for line in content.decode().split("\n"):
        reading, _, rest = line.partition(":")
        spelling = rest.split(":")[0]
        if regex.fullmatch(r"\p{Han}{2,4}", spelling) and len(spellings[reading]) < 8:
            spellings[reading].append(spelling)
    return {reading: words for reading, words in spellings.items() if words}


def noise(seed: int) -> Iterator[str]:
    """Base64, hexadecimal digests, UUIDs, tokens and ids, all random."""
    chance = random.Random(seed)
    letters = string.ascii_letters + string.digits
    header = {"alg": "HS256", "typ": "JWT"}
    for _ in range(1500):
        raw = chance.randbytes(chance.randrange(30, 300))
        claims = {
            "sub": str(chance.getrandbits(32)),
            "iat": chance.randrange(15 * 10**8, 18 * 10**8),
        }
        signed = [json.dumps(one, separators=(",", ":")).encode() for one in (header, claims)]
        parts = [base64.urlsafe_b64encode(one).decode().rstrip("=") for one in (*signed, raw[:32])]
        digest = raw[: chance.choice([8, 16, 20, 30])].hex()
        yield chance.choice(
            [
                base64.b64encode(raw).decode(),
                f"data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA{base64.b64encode(raw).decode()}",
                ".".join(parts),
                digest,
                "-".join(
                    (digest * 4)[a:b] for a, b in ((0, 8), (8, 12), (12, 16), (16, 20), (20, 32))
                ),
                "".join(chance.choices(letters, k=chance.choice([11, 20, 22, 24, 40]))),
                " ".join(f"{value:02x}" for value in raw[:16]),
            ]
        )


FUNCTION = {
    "py": re.compile(r"^\s*def (\w+)", re.M),
    "js": re.compile(r"^\s*(?:export )?(?:async )?function (\w+)", re.M),
    "java": re.compile(r"^\s+(?:[\w@<>\[\], ]+) (\w+)\([^;)]*\)[^;\n]*\{", re.M),
    "go": re.compile(r"^func (?:\([^)]*\) )?(\w+)\(", re.M),
    "cs": re.compile(r"^\s+(?:public|private|internal|protected)[\w<>\[\] ]* (\w+)\(", re.M),
}
KINDS = {".py": "py", ".ts": "js", ".tsx": "js", ".js": "js", ".java": "java", ".kt": "java"}
KINDS |= {".go": "go", ".cs": "cs"}
PACKAGE = re.compile(r"^(?:package|namespace) ([\w.]+)", re.M)
CLASS = re.compile(r"(?:class|object|interface|struct) (\w+)")


def traces(half: Path, seed: int) -> Iterator[str]:
    """Stack traces as runtimes print them, with files and functions of the packages."""
    chance = random.Random(seed)
    frames = defaultdict(list)
    for name, text in files(half, tuple(KINDS), 200_000, 600_000):
        path = name.split(":", 1)[1]
        kind = KINDS[Path(path).suffix]
        package, owner = PACKAGE.search(text), CLASS.search(text)
        place = f"{package[1] if package else 'main'}.{owner[1] if owner else 'Main'}"
        for found in FUNCTION[kind].finditer(text):
            line = text.count("\n", 0, found.start()) + 2
            code = text[found.end() :].split("\n", 2)[1:2]
            frames[kind].append((path, line, found[1], place, "".join(code).strip()))
    for _ in range(900):
        kind = chance.choice(["py", "js", "java", "go", "cs", "py", "js", "java"])
        picked = chance.choices(frames[kind], k=chance.randrange(4, 14)) if frames[kind] else []
        lines = "".join(_frame(kind, chance, *one) for one in picked)
        yield chance.choice(MADE["starts"][kind]) + lines + chance.choice(MADE["ends"][kind])


def _frame(
    kind: str, chance: random.Random, path: str, line: int, function: str, place: str, code: str
) -> str:
    root, name = chance.choice(MADE["roots"].get(kind, [""])), Path(path).name
    if kind == "py":
        return f'  File "{root}{path}", line {line}, in {function}\n    {code}\n'
    if kind == "js":
        before = chance.choice(["", "async ", "Object.", "new ", "Module."])
        return f"    at {before}{function} ({root}{path}:{line}:{chance.randrange(3, 60)})\n"
    if kind == "java":
        return f"\tat {place}.{function}({name}:{line})\n"
    if kind == "go":
        numbers = (f"0x{chance.getrandbits(chance.choice([8, 40])):x}" for _ in range(3))
        called = f"{path.rpartition('/')[0]}.{function}({', '.join(numbers)})"
        return f"{called}\n\t/go/src/{path}:{line} +0x8e\n"
    return f"   at {place}.{function}() in C:\\src\\{name}:line {line}\n"
