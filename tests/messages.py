"""The sentences with which the code answers, read from its source; `python -m tests.messages` writes them into the page
of troubleshooting.

A field that the code fills in is shown as `...`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from vf.types import counted

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
ERRORS = ("UserError", "HostsError", "Stopped", "DiskFull")
BEGIN = "<!-- From here on written by `python -m tests.messages`. -->\n"


def sentences() -> dict[str, list[str]]:
    """{file in `vf`: the templates of its errors and warnings, in the order of its lines}."""
    found = {}
    for path in sorted((ROOT / "vf").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
        calls = [call for call in calls if _name(call.func) in (*ERRORS, "warning")]
        words = [call.args[0] for call in calls]
        # A sentence may be put into a variable first.
        variables = {word.id for word in words if isinstance(word, ast.Name)}
        assigned = [(node.targets[0], node.value) for node in nodes if isinstance(node, ast.Assign)]
        words += [value for target, value in assigned if isinstance(target, ast.Name) and target.id in variables]
        templates = [template(word) for word in sorted(words, key=lambda word: word.lineno)]
        # A call that passes on the words of another error has none of its own.
        if own := list(dict.fromkeys(text for text in templates if re.search(r"\w{2}", text.replace("...", "")))):
            found[path.relative_to(ROOT / "vf").as_posix()] = own
    return found


def literals() -> set[str]:
    """The templates of all texts in `vf`, among them those of errors that one function words and another raises."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "vf").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.Constant)]
    return {template(node) for node in nodes} - {"..."}


def template(node: ast.expr) -> str:
    """The text of a literal, an f-string or a format, with `...` for what is filled in; "..." for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = re.sub(r"%[-+.\d]*[sdrfg]", "...", node.value).replace("%%", "%")
    elif isinstance(node, ast.JoinedStr):
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else _filled(part) for part in node.values)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        text = template(node.left) + template(node.right)
    else:
        return "..."
    return re.sub(r"(\.\.\.){2,}", "...", text)


def _filled(part: ast.expr) -> str:
    """What stands for a field of an f-string: "..." alone or, for `counted(number, noun)`, with the noun's plural."""
    call = part.value if isinstance(part, ast.FormattedValue) else part
    if isinstance(call, ast.Call) and _name(call.func) == "counted" and isinstance(call.args[1], ast.Constant):
        return counted(2, str(call.args[1].value)).replace("2", "...")
    return "..."


def matches(quoted: str, template: str) -> bool:
    """Whether `quoted`, which may leave parts out or fill them in, is a sentence of the code.

    Both may hold `...`. What is quoted between two of them must be in the template, in order."""
    place = 0
    for piece in (piece.strip() for piece in quoted.split("...")):
        place = template.find(piece, place)
        if place < 0:
            return False
        place += len(piece)
    return True


def appendix() -> str:
    """All sentences by file, as Markdown."""
    parts = []
    for file, texts in sentences().items():
        rows = "\n".join(f"- `{text.replace('`', chr(39))}`" for text in texts)
        parts.append(f"\n`vf/{file}`\n\n{rows}\n")
    return BEGIN + "".join(parts)


def quoted() -> Iterator[str]:
    """The sentences that the page explains: the code at the beginning of each row of its tables."""
    for row in PAGE.read_text().partition(BEGIN)[0].splitlines():
        if match := re.match(r"\| `(.*?)` \|", row):
            yield match[1]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(BEGIN)[0] + appendix())
