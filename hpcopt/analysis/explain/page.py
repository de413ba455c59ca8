"""Explanations as one page: what methods say of the same inputs side by side, and how good they are."""

import html
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hpcopt.analysis.explain.judged import table
from hpcopt.analysis.explain.overlay import data_uri, in_words, overlay, plain, strength
from hpcopt.analysis.explain.results import Explanations
from hpcopt.analysis.explain.scores import SCORES
from hpcopt.report.attributes import printable
from hpcopt.report.figure import COLOURS, GREY, Figure
from hpcopt.report.page import page_of, section_of, table_of

STYLE = Path(__file__).with_name("explanations.css")
SHOWN = 12  # inputs
TOP = 3  # words that a screen reader hears
LEGEND = (
    "<p><span class='swatch' style='background:#d62728'></span> red counts for the class, "
    "<span class='swatch' style='background:#1f77b4'></span> blue against it, of a slope a larger value does; "
    "each picture has a scale of its own.</p>"
)


def page(found: Explanations) -> str:
    """The whole page.

    Raises:
        MetricsError: plotly is not installed.
    """
    figures = curves(found)
    shown = {"image": images, "tokens": tokens, "table": columns}[str(found.attributes["kind"])]
    body = [
        about(found),
        f"<section><h2>Side by side</h2>{shown(found)}</section>",
        *([f"<section><h2>What layers answer to</h2>{pictures(found)}</section>"] if found.pictures else []),
        *([f"<section><h2>How good</h2>{table_of(table(found))}{definitions()}</section>"] if figures else []),
        *map(section_of, figures),
    ]
    return page_of(
        printable(str(found.attributes["title"])), "\n".join(body), figures, STYLE.read_text(encoding="utf-8")
    )


def about(found: Explanations) -> str:
    """What was asked, as a table."""
    asked = json.loads(str(found.attributes["asked"]))
    right = found.inputs["label"] == found.inputs["predicted"]
    known = found.inputs["label"] >= 0
    rows = [
        ["inputs", f"{len(right):,}"],
        ["classified rightly", f"{right[known].mean():.1%}" if known.any() else "not known"],
        [
            "asked about",
            f"the class {asked['target']}" if isinstance(asked["target"], str) else f"class {asked['target']}",
        ],
        ["seed", str(asked["seed"])],
        ["settings", ", ".join(f"{name} {value}" for name, value in asked["settings"].items())],
        ["captum", str(found.attributes["captum"])],
    ]
    return table_of([["", ""], *rows])


def images(found: Explanations) -> str:
    """A row an input, a column a method."""
    heads = "".join(f"<th scope='col'>{name}<small>{m.about}</small></th>" for name, m in found.methods.items())
    rows = []
    for number in range(min(SHOWN, len(found.inputs["row"]))):
        image, name = found.inputs["shown"][number], said(found, number)
        first = f"{_picture(plain(image), f'input: {name}')}<small>{html.escape(name)}</small>"
        cells = [
            _picture(overlay(image, m.attribution[number]), f"{method}: {in_words(m.attribution[number])}")
            for method, m in found.methods.items()
        ]
        rows.append(f"<tr><th scope='row'>{first}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = f"<tr><th scope='col'>input</th>{heads}</tr>"
    return f"{LEGEND}<div class='grid' tabindex='0'><table>{head}{''.join(rows)}</table></div>"


def tokens(found: Explanations) -> str:
    """For each input its text once a method, each token in the colour of what it counts."""
    parts = [LEGEND]
    for number in range(min(SHOWN, len(found.inputs["row"]))):
        parts.append(f"<div class='tokens'><h3>{html.escape(said(found, number))}</h3>")
        words = [found.words.get(token, str(token)) for token in found.inputs["shown"][number].tolist()]
        for method, m in found.methods.items():
            parts.append(f"<p><small>{method}</small>{_coloured(words, strength(m.attribution[number]))}</p>")
        parts.append("</div>")
    return "".join(parts)


def columns(found: Explanations) -> str:
    """For each input a table: a row a column, what it holds, and what each method says."""
    parts = []
    for number in range(min(SHOWN, len(found.inputs["row"]))):
        values = found.inputs["shown"][number].reshape(len(found.inputs["shown"][number]), -1)
        rows = [["column", "value", *found.methods]]
        for column in range(len(values)):
            counts = [f"{m.attribution[number][column].sum():+.3g}" for m in found.methods.values()]
            rows.append([str(column), " ".join(f"{value:.3g}" for value in values[column][:4]), *counts])
        parts.append(f"<h3>{html.escape(said(found, number))}</h3>{table_of(rows)}")
    return "".join(parts)


def pictures(found: Explanations) -> str:
    """What layers answer to, each with its caption."""
    items = []
    for image, text in found.pictures.values():
        caption = printable(str(text["caption"]))
        items.append(
            f"<figure>{_picture(plain(image), caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    return f"<div class='pictures'>{''.join(items)}</div>"


def said(found: Explanations, number: int) -> str:
    """An input's row, the class that is asked about with its probability, and the class that it has."""
    target, label = int(found.inputs["target"][number]), int(found.inputs["label"][number])
    text = f"row {found.inputs['row'][number]}: {found.class_name(target)}, {found.inputs['probability'][number]:.0%}"
    return printable(text if label in (target, -1) else f"{text}, is {found.class_name(label)}")


def definitions() -> str:
    """What the columns of the table mean."""
    lines = [
        "deletion, insertion: area under the curves below; beats random: both are better than the mean of random "
        "rankings of the same inputs, by two standard errors",
        *(f"{name}: {text}" for name, text in SCORES.items()),
    ]
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def curves(found: Explanations) -> list[Figure]:
    """Deletion and insertion curves of all methods beside those of random rankings."""
    return (
        [
            _curves(found, "deletion", "What is left of the class without the places that count most"),
            _curves(found, "insertion", "What there is of the class with the places that count most alone"),
        ]
        if len(found.inputs["deletion"])
        else []
    )


def _curves(found: Explanations, name: str, title: str) -> Figure:
    lines = {method: getattr(m, name).mean(0) for method, m in found.methods.items()}
    lines["random ranking"] = found.inputs[name].mean(0)
    part = np.linspace(0, 1, len(lines["random ranking"])).tolist()
    data = []
    for number, (method, line) in enumerate(lines.items()):
        look: dict[str, object] = {"color": COLOURS[number % len(COLOURS)]}
        look["dash"] = ("solid", "dash")[number // len(COLOURS) % 2]
        if method == "random ranking":
            look = {"color": GREY, "dash": "dot", "width": 4}
        data.append({"x": part, "y": line.tolist(), "name": method, "line": look})
    definition = (
        f"Mean over {len(found.inputs[name])} inputs of the probability of the class that is asked about, against the "
        f"part of the places that are {'gone' if name == 'deletion' else 'there'}, those that count most first."
    )
    layout = {
        "xaxis": {"title": {"text": f"part of the places {name[:-3]}ed"}},
        "yaxis": {"title": {"text": "probability"}},
    }
    columns = {"part": part * len(lines), "method": [m for m in lines for _ in part]}
    return Figure(
        name, title, definition, data, layout, {**columns, "probability": np.concatenate(list(lines.values())).tolist()}
    )


def _picture(pixels: np.ndarray, text: str) -> str:
    return f"<img src='{data_uri(pixels)}' alt='{html.escape(printable(text), quote=True)}'>"


def _coloured(words: Iterable[str], counts: np.ndarray) -> str:
    """Tokens on a ground of their colour; a screen reader hears which count most."""
    every = [html.escape(printable(word)) for word in words]
    spans = []
    for word, count in zip(every, counts.tolist(), strict=True):
        colour = f"rgba(214, 39, 40, {0.7 * count:.2f})" if count > 0 else f"rgba(31, 119, 180, {-0.7 * count:.2f})"
        kind = "token against" if count < -0.5 else "token"
        spans.append(f"<span class='{kind}' style='background:{colour}' title='{count:+.2f}'>{word}</span>")
    best = ", ".join(every[place] for place in np.argsort(-counts)[:TOP] if counts[place] > 0) or "none"
    return f"<span class='hidden'>most for the class: {best}. </span>{' '.join(spans)}"
