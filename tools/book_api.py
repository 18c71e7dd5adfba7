"""The reference pages that no notebook holds: the public names of the package, and the measured results.

Both are Markdown made from the repository's files; no module is imported for it.
"""
import ast
import io
import json
import tokenize
from pathlib import Path


def api_markdown(package: Path, modules: dict[str, tuple[str, str]]) -> str:
    "Every exported name of every module; `modules`: metrics -> (nbs/02_metrics, Metrics), in reading order."
    parts = ["# API reference {#sec-api}\n\n> What does the package offer, and what does each name want?\n\n"
             "Made from the signatures, docstrings and parameter comments of the exported code."]
    for module, (page, title) in modules.items():
        path = package / (module.replace(".", "/") + ".py")
        if path.is_file(): parts.append(module_markdown(path.read_text(encoding="utf-8"), module, page, title))
    return "\n\n".join(parts) + "\n"


def module_markdown(source: str, module: str, page: str, title: str) -> str:
    "One section: the module and the names it exports, in the order in which the chapter defines them."
    tree, comments = ast.parse(source), comments_of(source)
    public = exported(tree)
    parts = [f"## semseg_course.{module} {{#sec-api-{module.replace('.', '-').replace('_', '-')}}}\n\n"
             f"From the chapter [{title}]({page}.ipynb)."]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in public: parts.append(function_markdown(node, comments, 3))
        elif isinstance(node, ast.ClassDef) and node.name in public: parts.append(class_markdown(node, comments))
        elif isinstance(node, ast.Assign) and (names := [n for n in names_of(node) if n in public]):
            comment = comments.get(node.end_lineno, "").rstrip(".")
            parts += [f"### {name}\n\n{comment[:1].upper() + comment[1:] + '.' if comment else ''}" for name in names]
    return "\n\n".join(parts)


def names_of(node: ast.Assign) -> list[str]:
    "What an assignment names, one by one: `SKY, ROAD = 0, 3` names two."
    return [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def exported(tree: ast.Module) -> set[str]:
    "The names in `__all__`."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def comments_of(source: str) -> dict[int, str]:
    "Line number -> the comment at its end."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def docstring(node) -> str:
    "One sentence; its `Shapes:`, `Units:`, ... lines as a list."
    lines = (ast.get_docstring(node) or "").splitlines()
    return "\n".join(f"- *{line.split(':')[0]}:*{line.split(':', 1)[1]}" if _is_note(line) else line for line in lines)


def _is_note(line: str) -> bool:
    return line.split(":")[0] in ("Shapes", "Units", "Raises", "Paper") and ":" in line


def function_markdown(node: ast.FunctionDef, comments: dict, level: int, owner: str = "") -> str:
    "Signature, docstring and a table of the parameters."
    name = f"{owner}.{node.name}" if owner else node.name
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{node.name}({_signature(node.args)}){returned}"
    rows = parameter_rows(node.args, comments)
    comment = comments.get(node.returns.lineno, "") if node.returns else ""
    if comment and all(_cell(comment) != row[3] for row in rows):
        rows.append(("*returns*", _code(node.returns), "", _cell(comment)))
    table = _columns("parameter", rows)
    return f"{'#' * level} {name}\n\n```python\n{signature}\n```\n\n{docstring(node)}\n\n{table}".rstrip()


def class_markdown(node: ast.ClassDef, comments: dict) -> str:
    "A class: fields when it is a dataclass, else its `__init__`; then its public methods."
    parts = [f"### {node.name}\n\n{docstring(node)}"]
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    rows = [(f"`{n.target.id}`", _code(n.annotation), _code(n.value), _cell(comments.get(n.lineno, "")))
            for n in fields if not n.target.id.startswith("_")]
    if rows: parts.append(_columns("field", rows))
    for method in node.body:
        if not isinstance(method, ast.FunctionDef): continue
        if method.name == "__init__" or (not method.name.startswith("_") and ast.get_docstring(method)):
            parts.append(function_markdown(method, comments, 4, node.name))
    return "\n\n".join(parts)


def _columns(first: str, rows: list[tuple]) -> str:
    "A table of (name, type, default, meaning) rows without the columns that would be empty."
    head = (first, "type", "default", "meaning")
    kept = [i for i in range(4) if any(row[i] for row in rows)]
    lines = [[head[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _arguments(args: ast.arguments) -> list[tuple]:
    "(name, annotation, default) of every parameter but self."
    plain = args.posonlyargs + args.args
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    found = list(zip(plain, defaults)) + ([(args.vararg, None)] if args.vararg else [])
    found += list(zip(args.kwonlyargs, args.kw_defaults)) + ([(args.kwarg, None)] if args.kwarg else [])
    return [(arg, default) for arg, default in found if arg.arg not in ("self", "cls")]


def _signature(args: ast.arguments) -> str:
    stars = {id(args.vararg): "*", id(args.kwarg): "**"}
    parts = []
    for arg, default in _arguments(args):
        if args.kwonlyargs and arg is args.kwonlyargs[0] and not args.vararg: parts.append("*")
        value = f"={ast.unparse(default)}" if default is not None else ""
        parts.append(f"{stars.get(id(arg), '')}{arg.arg}{value}")
    return ", ".join(parts)


def parameter_rows(args: ast.arguments, comments: dict) -> list[tuple]:
    "One table row a parameter: its name, type, default, and the comment behind it."
    return [(f"`{arg.arg}`", _code(arg.annotation), _code(default), _cell(comments.get(arg.lineno, "")))
            for arg, default in _arguments(args)]


def _code(node) -> str:
    return f"`{_cell(ast.unparse(node))}`" if node is not None else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# Results

def results_markdown(folder: Path) -> str:
    "Every measured figure under results/, one section a file."
    files = sorted(folder.glob("*.json"))
    parts = ["# Results {#sec-results}\n\n> What did we measure, on what, and how can you measure it again?\n\n"
             "Each table comes from one file under `results/`, which the command above the table wrote."]
    if not files: parts.append("Nothing has been measured yet.")
    for path in files:
        data = json.loads(path.read_text(encoding="utf-8"))
        anchor = path.stem.lower().replace("_", "-")
        parts.append(f"## {path.stem.replace('_', ' ').capitalize()} {{#sec-results-{anchor}}}\n\n"
                     f"{circumstances(data)}\n\n{tables(data.get('figures', {}))}")
    return "\n\n".join(parts) + "\n"


def circumstances(data: dict) -> str:
    "Command, date, duration, machine and versions of one result."
    versions = ", ".join(f"{name} {version}" for name, version in data.get("versions", {}).items() if version)
    hardware = ", ".join(f"{name}: {value}" for name, value in data.get("hardware", {}).items() if value)
    lines = [f"```bash\n{data.get('command', '')}\n```\n"]
    lines += [f"- *{name}:* {value}" for name, value in (
        ("Date", data.get("date")), ("Seconds", data.get("seconds")), ("Seed", data.get("seed")),
        ("Machine", hardware), ("Versions", versions)) if value not in (None, "")]
    return "\n".join(lines)


def tables(figures: dict) -> str:
    "Plain values as one table, a dictionary of values or a list of rows as a table of its own."
    plain = {k: v for k, v in figures.items() if not isinstance(v, (dict, list))}
    parts = [_table(["figure", "value"], [[_words(k), v] for k, v in plain.items()])] if plain else []
    for name, value in figures.items():
        if isinstance(value, dict): parts.append(f"**{_words(name)}**\n\n{_dictionary(value)}")
        elif isinstance(value, list) and value: parts.append(f"**{_words(name)}**\n\n{_rows(value)}")
    return "\n\n".join(parts)


def _dictionary(value: dict) -> str:
    if value and all(isinstance(v, dict) for v in value.values()):
        columns = list(dict.fromkeys(k for v in value.values() for k in v))
        return _table(["", *columns], [[name, *(row.get(c) for c in columns)] for name, row in value.items()])
    return _table(["figure", "value"], [[_words(k), v] for k, v in value.items()])


def _rows(value: list) -> str:
    if not all(isinstance(row, dict) for row in value): return ", ".join(_number(v) for v in value[:200])
    columns = list(dict.fromkeys(k for row in value for k in row))
    return _table(columns, [[row.get(c) for c in columns] for row in value])


def _table(head: list, rows: list[list]) -> str:
    lines = ["| " + " | ".join(_words(h) for h in head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(_cell(_number(v)) for v in row) + " |" for row in rows])


def _words(name) -> str: return str(name).replace("_", " ")


def _number(value) -> str:
    if value is None: return ""
    if isinstance(value, float): return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, (dict, list)): return json.dumps(value)[:120]
    return str(value)
