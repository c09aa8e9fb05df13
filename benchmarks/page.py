"""Writes a run's figures into docs/how-fast.md, between its two marks, and the plots beside it; what each change buys
stands in docs/built-for-speed.md, a few figures in the README, and those of engines in docs/deploying.md."""

from __future__ import annotations

from benchmarks import plots, report
from benchmarks.processes import ROOT

PAGE = ROOT / "docs" / "how-fast.md"
WHY_PAGE = ROOT / "docs" / "built-for-speed.md"
DEPLOYING = ROOT / "docs" / "deploying.md"
README = ROOT / "README.md"
PLOTS = ROOT / "docs" / "how-fast"
BEGIN = "<!-- Figures begin: written by `python -m benchmarks --docs`. -->\n"
END = "<!-- Figures end. -->\n"
BEGIN_SHORT = "<!-- Summary begins: written by `python -m benchmarks --docs`. -->\n"
END_SHORT = "<!-- Summary ends. -->\n"
BEGIN_ENGINES = "<!-- Engines begin: written by `python -m benchmarks --docs`. -->\n"
END_ENGINES = "<!-- Engines end. -->\n"
BEGIN_WHY = "<!-- The table begins: written by `python -m benchmarks.why --reference`. -->\n"
END_WHY = "<!-- The table ends. -->\n"


def block(document: report.Document) -> str:
    """What stands between the marks."""
    titles = {"ratios.svg": "ratios", "cpu.svg": "CPU of bulk", "rate.svg": "speed of bulk",
              "small.svg": "small answers", "in-flight.svg": "cost over the number in flight"}  # fmt: skip
    images = "\n\n".join(f"![{title}](how-fast/{name})" for name, title in titles.items())
    missing = "\n".join(f"- {line}" for line in report.left_out(document))
    ini = f"```ini\n{document['ini'].strip()}\n```"
    parts = [report.conditions(document), report.how_noisy(document), report.table(document), missing,
             report.small(document), images, ini]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def in_short(document: report.Document) -> str:
    """What stands between the marks of the README."""
    return f"{report.summary(document)}\n\n{report.conditions(document)}\n"


def engines(document: report.Document) -> str:
    """What stands between the marks of the page about deploying."""
    table = report.side_by_side(document)
    if not table:
        return "The run that the pages show has no figures of them: `python -m benchmarks engines` takes some.\n"
    return f"{table}\n\n{report.conditions(document)}\n"


def replaced(page: str, inside: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with something else between two marks; raises ValueError where a mark is missing."""
    before, found, rest = page.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the page lacks one of its two marks, {begin.strip()} and {end.strip()}")
    return f"{before}{begin}\n{inside}\n{end}{after}"


def write_why(inside: str) -> None:
    """Rewrite the table of what each change buys."""
    WHY_PAGE.write_text(replaced(WHY_PAGE.read_text(encoding="utf-8"), inside, BEGIN_WHY, END_WHY), encoding="utf-8")


def write(document: report.Document) -> None:
    """Rewrite the page, its plots, and the figures of the README and of the page about deploying."""
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), block(document)), encoding="utf-8")
    short = replaced(README.read_text(encoding="utf-8"), in_short(document), BEGIN_SHORT, END_SHORT)
    README.write_text(short, encoding="utf-8")
    beside = replaced(DEPLOYING.read_text(encoding="utf-8"), engines(document), BEGIN_ENGINES, END_ENGINES)
    DEPLOYING.write_text(beside, encoding="utf-8")
    PLOTS.mkdir(exist_ok=True)
    for name, drawing in plots.draw(document).items():
        (PLOTS / name).write_text(drawing, encoding="utf-8")
