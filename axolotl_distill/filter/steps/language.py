"""The step `language`: thinking and answer are each in a language that is allowed."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from pydantic import Field

from axolotl_distill.config.block import Block
from axolotl_distill.errors import ConfigError
from axolotl_distill.filter.packages import require
from axolotl_distill.filter.parts import part
from axolotl_distill.filter.step import ALONE, Around, Candidate, Step, Verdict, registered

log = logging.getLogger(__name__)

PAIRS = (("```", "```"), ("~~~", "~~~"), (r"\begin{", r"\end{"), ("$$", "$$"), (r"\[", r"\]"))
# Formulas, LaTeX, code and names of code within a line, addresses, tags, digits and signs.
NO_LANGUAGE = re.compile(
    r"\$[^$\n]*\$|\\\([^\n]{0,500}?\\\)|\\[a-zA-Z]+|`[^`\n]*`|https?://\S+|</?[a-zA-Z][^<>\n]{0,200}>"
    r"|(?<!\w)[^\W_]++(?:_[^\W_]++)+|(?<!\w)[a-z]++[A-Z]\w*+|[\d_]|[^\w\s'’-]"
)
SAMPLE = 200  # characters: enough to tell a language, few enough to see a paragraph in another one
SAMPLES = 200  # of one text, evenly spread where there are more
FOREIGN = 0.1  # a sample with less of a chance than this to be in an allowed language is not in one
# Scripts, by the first words of Unicode's names; a language that is in none is in Latin letters.
SCRIPTS = {
    **{"LATIN": "sr kk", "CYRILLIC": "ru uk be bg sr mk kk ky mn tg tt ba cv ce os sah"},
    **{"CJK": "zh wuu yue ja ko", "HIRAGANA": "ja", "KATAKANA": "ja", "HANGUL": "ko"},
    **{"ARABIC": "ar fa ur ps ug sd arz ckb kk", "HEBREW": "he yi", "DEVANAGARI": "hi mr ne sa bh"},
    **{"BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te", "KANNADA": "kn", "MALAYALAM": "ml"},
    **{"GUJARATI": "gu", "GURMUKHI": "pa", "SINHALA": "si", "THAI": "th", "LAO": "lo"},
    **{"KHMER": "km", "MYANMAR": "my", "GEORGIAN": "ka", "ARMENIAN": "hy", "ETHIOPIC": "am"},
    **{"GREEK": "el", "TIBETAN": "bo", "ORIYA": "or"},
}
SCRIPT_LETTERS = 4  # a text with as many letters has a script


class LanguageArgs(Block):
    """Only these languages. Code, formulas and numbers are no language and are not looked at."""

    allow: list[str] = Field(["en"], min_length=1, description="ISO 639-1 codes.")
    of: Literal["all", "thinking", "answer"] = Field(
        "all", description="all: thinking and answer, each by itself."
    )
    max_other: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of a text that may be in other languages."
    )
    min_confidence: float = Field(0.0, ge=0.0, le=1.0)
    min_letters: int = Field(
        40,
        ge=1,
        description="A text with fewer letters cannot be told apart: it is kept, unless most of it "
        "is in a script that no allowed language has.",
    )


@registered
class LanguageStep(Step[LanguageArgs]):
    """In a language that is allowed, as py3langid sees it.

    Thinking and answer are asked about separately, each in samples all over its text; a text is
    dropped when more than `max_other` of its samples are in another language. A text with fewer
    than `min_letters` letters is too short to tell: it is dropped when most of it is in a script
    that no allowed language has, and else kept. How many were kept so is said at the end.

    Reasons: "language xx", "language not sure" (`min_confidence`), "another script".
    """

    kind = "language"
    Args = LanguageArgs
    remedy = "Lower `min_confidence`, allow the language seen, or look at `of: answer` only."

    def __init__(self, args: LanguageArgs, around: Around = ALONE):
        super().__init__(args, around)
        require("py3langid", f"filter.steps: {around.name}")
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        self.identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        unknown = sorted(set(args.allow) - set(self.identifier.labels))
        if unknown:
            raise ConfigError(
                f"`language.allow` names {', '.join(unknown)}, which py3langid does not know. "
                f"Known: {', '.join(sorted(self.identifier.labels))}."
            )
        # Greek letters are mathematics anywhere.
        self.scripts = {"GREEK"}.union(*map(scripts, args.allow))

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        short = total = 0
        names = ("thinking", "answer") if self.args.of == "all" else (self.args.of,)
        for row in rows:
            total += 1
            texts = [plain(part(row, name)) for name in names]
            verdicts = [self._judge(name, text) for name, text in zip(names, texts, strict=True)]
            verdict = next((one for one in verdicts if not one.keep), Verdict(True))
            short += verdict.keep and any(0 < letters(t) < self.args.min_letters for t in texts)
            yield verdict
        if short:
            log.warning(
                "language: %d of %d rows were kept with thinking or an answer of fewer than %d "
                "letters, of which only the script was looked at (language.min_letters).",
                *(short, total, self.args.min_letters),
            )

    def _judge(self, name: str, text: str) -> Verdict:
        count = letters(text)
        other = Counter(map(script, filter(str.isalpha, text[:10_000])))
        foreign = sum(n for one, n in other.items() if one not in self.scripts)
        if foreign >= SCRIPT_LETTERS and foreign > other.total() / 2:
            if count < self.args.min_letters:
                return Verdict(False, "another script", detail=f"{name}: {text[:100]}")
        elif count < self.args.min_letters:
            return Verdict(True)
        return self._sampled(name, samples(text))

    def _sampled(self, name: str, texts: list[str]) -> Verdict:
        languages: Counter[str] = Counter()
        unsure, seen = 0, ""
        for text in texts:
            ranked = self.identifier.rank(text)
            allowed = [chance for label, chance in ranked if label in self.args.allow]
            if ranked[0][0] not in self.args.allow and sum(allowed) < FOREIGN:
                languages[ranked[0][0]] += 1
                seen = seen or text
            elif max(allowed) < self.args.min_confidence:
                unsure += 1
                seen = seen or text
        most = self.args.max_other * len(texts)
        detail = f"{name}, {languages.total()} of {len(texts)} samples: {seen[:100]}"
        if languages.total() > most:
            return Verdict(False, f"language {languages.most_common(1)[0][0]}", detail=detail)
        if unsure > most:
            return Verdict(False, "language not sure", detail=detail)
        return Verdict(True)


def plain(text: str) -> str:
    """Without what is in no language."""
    for opening, closing in PAIRS:
        text = _outside(text, opening, closing)
    return " ".join(NO_LANGUAGE.sub(" ", text).split())


def _outside(text: str, opening: str, closing: str) -> str:
    """Code that is never closed goes on to the end; a formula that is never closed is none."""
    pieces, at = [], 0
    while (start := text.find(opening, at)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            end = len(text) if opening in ("```", "~~~") else start
            pieces.append(text[at:start] + text[end:])
            return " ".join(pieces)
        pieces.append(text[at:start])
        at = end + len(closing)
    return " ".join([*pieces, text[at:]])


def letters(text: str) -> int:
    return sum(map(str.isalpha, text))


def scripts(language: str) -> set[str]:
    return {one for one, users in SCRIPTS.items() if language in users.split()} or {"LATIN"}


def script(letter: str) -> str:
    return unicodedata.name(letter, "LATIN").split()[0].removesuffix("-COMPATIBILITY")


def samples(text: str) -> list[str]:
    """Pieces of about `SAMPLE` characters; a last one of less than half of that is no piece."""
    count = max(1, round(len(text) / SAMPLE))
    size = -(-len(text) // count)
    pieces = [text[n * size : (n + 1) * size] for n in range(count)]
    return pieces[:: -(-count // SAMPLES)]
