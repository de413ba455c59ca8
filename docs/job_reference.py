"""Write docs/reference/job.md, every key of a job file, from the schema: python docs/job_reference.py"""

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from hpcopt.job import Job

PAGE = Path(__file__).parent / "reference/job.md"

HEAD = """\
# Job reference

You look up here every key that a job file may have. `python docs/job_reference.py` writes the page
from the schema. A job is a TOML file in UTF-8. Each section is one choice, made by its `name` where
there is more than one. `name = "package.module:Class"` takes a class of your own.

A key that is not here stops the job before anything starts. A key whose default is `off`, or which
takes `off`, may have no value: in a file, `"off"`. A section without a `name` is of its default's
class, and changes keys of that.

Any key can be changed on the command line, `--set solver.optimizer.lr=0.05`:

- The value is TOML. What is no TOML is text: `--set workload.data=data/digits`. Text that looks
  like something else stands in quotes: `--set 'run.name="2024"'`.
- `--set solver.kl_clip=off` switches a key off.
- `--set solver.optimizer.name=adamw` makes a section one of another class. Keys of the file that
  this class does not know are left out, and named.

`python -m hpcopt.train JOB.toml --dry-run` prints the job with every default filled
in; `--schema` prints the JSON schema.
"""


def reference() -> str:
    """The page: each config class once, with the places where it may stand."""
    schema = Job.model_json_schema()
    lines = [HEAD]
    described: dict[str, str] = {}
    for section, value in schema["properties"].items():
        lines.append(f"## [{section}]\n\n{value['description'].capitalize()}.\n")
        for choice in choices(value, schema):
            lines += describe(choice, section, schema, described)
    return re.sub(r"\(#@(\w+)\)", lambda found: f"(#{anchor(described[found[1]])})", "\n".join(lines))


def choices(value: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The config classes that a key takes; none for a plain value."""
    references = [v["$ref"] for v in (value, *value.get("oneOf", ()), *value.get("anyOf", ())) if "$ref" in v]
    return [schema["$defs"][reference.rsplit("/", 1)[1]] for reference in references]


def describe(model: dict[str, Any], section: str, schema: dict[str, Any], described: dict[str, str]) -> list[str]:
    """A table of a config class's keys, then the tables of the sections inside it, unless they stand above already."""
    if model["title"] in described:
        return []
    described[model["title"]] = title_of(model, section)
    words = model.get("description", "").partition(">>>")[0].strip()  # no example
    lines = [f"### {described[model['title']]}\n", f"{textwrap.fill(words, 100)}\n"]
    lines += ["| key | takes | default | meaning |", "|---|---|---|---|"]
    inner = []
    for key, value in model["properties"].items():
        if "const" in value:
            continue
        nested = choices(value, schema)
        entries = choices(value.get("items", {}), schema)
        takes = ", ".join(link(choice, f"{section}.{key}") for choice in nested) if nested else kind(value)
        if entries:
            takes = f"sections `[[{section}.{key}]]`: {', '.join(link(e, f'{section}.{key}') for e in entries)}"
        default = default_of(value, key in model.get("required", ()))
        lines.append(f"| `{key}` | {takes} | {default} | {value.get('description', '')} |")
        inner += [(f"{section}.{key}", choice) for choice in nested + entries]
    lines.append("")
    for place, choice in inner:
        lines += describe(choice, place, schema, described)
    return lines


def title_of(model: dict[str, Any], section: str) -> str:
    """A class's heading: its name in a job, with the kind of section; or the section's own."""
    name = model["properties"].get("name", {}).get("const")
    return f"{name} ({section.rsplit('.', 1)[-1]})" if name else f"[{section}]"


def link(model: dict[str, Any], section: str) -> str:
    """To a class, by its own name until all headings are known."""
    return f"[{title_of(model, section).partition(' ')[0].strip('[]')}](#@{model['title']})"


def anchor(heading: str) -> str:
    """Of a heading, as GitHub and MkDocs name it."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def kind(value: dict[str, Any]) -> str:
    """What a plain key takes, in words."""
    if "anyOf" in value:
        kinds = [kind(v) if v.get("type") != "null" else "`off`" for v in value["anyOf"]]
        return " or ".join(k for k in kinds if k != "`off`" or value.get("default") is not None)
    if "enum" in value:
        return ", ".join(f"`{v}`" for v in value["enum"])
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true, false", "array": "list"}
    bounds = [
        f"{sign} {value[bound]}"
        for bound, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if bound in value
    ]
    return " ".join([words.get(value.get("type", ""), "value"), *bounds])


def default_of(value: dict[str, Any], required: bool) -> str:
    """How a default reads in the table."""
    if required:
        return "required"
    if "default" not in value:
        return ""
    default = value["default"]
    if default is None:
        return "off"
    if isinstance(default, dict):
        return f"`{default['name']}`" if "name" in default else ""
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return f"`{text}`"


if __name__ == "__main__":
    PAGE.write_text(reference())
