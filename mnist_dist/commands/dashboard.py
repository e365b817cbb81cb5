"""`mnist-dist dashboard`: a wandb workspace and a report for runs of a configuration, as JSON or saved on the server.

Both have the sections and panels of `dashboard_panels.py`. The workspace is to work with, the report to read and share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mnist_dist.commands.arguments import Parser
from mnist_dist.commands.dashboard_panels import STEP, Panel, Section, describe
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import TrackingConfig
from mnist_dist.tracking.wandb_auth import check_tracking, has_key
from mnist_dist.tracking.wandb_settings import resolve_labels
from mnist_dist.utils.errors import EXIT_DONE, TrainingError, UserError
from mnist_dist.utils.files import atomic_write, expand_home

INSTALL = "dashboards need the package `wandb-workspaces`: pip install 'mnist_dist[dashboards]'"
NAME = "mnist_dist"
CONFUSION = ("wandb/confusion_matrix/v1", {name: name for name in ("Actual", "Predicted", "nPredictions")})
WHOLE_WIDTH = 24  # of a report's grid; a panel is 8 wide unless it says something else


def main(arguments: list[str]) -> int:
    """Run `mnist-dist dashboard ARGUMENTS`; the exit code.

    Raises:
        UserError: wrong arguments, wandb-workspaces is not installed, --save without a key, or --out cannot be written.
        TrainingError: the server could not be reached, or refused.
        SystemExit: 0, after printing the help.
    """
    options, rest = build_parser().parse_known_args(arguments)
    config = load(rest).config
    check_tracking(config)
    try:
        import wandb_workspaces
    except ImportError:
        raise UserError(INSTALL) from None
    del wandb_workspaces
    if options.save and not has_key():
        raise UserError("--save: no wandb key is configured; set WANDB_API_KEY or run `wandb login`")
    labels = resolve_labels(config.tracking)  # the project of the runs, which may be WANDB_PROJECT
    tracking = config.tracking.model_copy(update={"project": labels.project, "entity": labels.entity})
    config = config.model_copy(update={"tracking": tracking})
    sections = describe(config, *names(config))
    if options.save:
        save(sections, config.tracking)
    if options.out or not options.save:
        write(to_json(sections, config), options.out)
    return EXIT_DONE


def build_parser() -> Parser:
    """The parser of this command. The arguments that it does not know are those of training."""
    parser = Parser(
        prog="mnist-dist dashboard",
        usage="%(prog)s [--out FILE] [--save]\n       [--config NAME|PATH]... [--section.key=VALUE]...",
        description="Build a wandb workspace and a report for runs of a configuration, which is given as in training, "
        "and print them as JSON. Their panels depend on model.name, data.val_size, train.profile and tracking.*.",
        examples=[
            "mnist-dist dashboard --out dashboard.json",
            "mnist-dist dashboard --config=debug --tracking.project=digits",
            "mnist-dist dashboard --save",
            "mnist-dist dashboard --save --tracking.entity=team --tracking.project=digits",
        ],
    )
    parser.add_argument("--out", metavar="FILE", default="", help="write the JSON to this file instead")
    parser.add_argument("--save", action="store_true", help="save both on the wandb server, which needs a key")
    return parser


def names(config: Config) -> tuple[list[str], list[str]]:
    """The names of the convolutions of a configuration's model, and those of its parameters."""
    from torch import nn

    from mnist_dist.models import create_model

    model = create_model(config.model.name, len(config.data.class_names) or 10, config.model.args)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    return layers, [name for name, _ in model.named_parameters()]


def to_json(sections: Sequence[Section], config: Config) -> str:
    """Workspace and report in the JSON of wandb's server. The same configuration gives the same text."""
    models = {
        "workspace": build_workspace(sections, config.tracking)._to_model(),
        "report": build_report(sections, config.tracking)._to_model(),
    }
    plain = {name: model.model_dump(mode="json", by_alias=True, exclude_none=True) for name, model in models.items()}
    return json.dumps(plain, indent=1) + "\n"


def write(text: str, out: str) -> None:
    """Print a text, or write it to a file. Raises UserError if the file cannot be written."""
    if not out:
        print(text, end="")
        return
    try:
        with atomic_write(expand_home(out, "--out ")) as aside:
            aside.write_text(text)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose another file") from None


def save(sections: Sequence[Section], tracking: TrackingConfig) -> None:
    """Save the report and the workspace view on the server, and print their URLs.

    Raises:
        TrainingError: the server could not be reached, or refused.
    """
    import wandb

    try:
        entity = tracking.entity or wandb.Api().default_entity
        tracking = tracking.model_copy(update={"entity": str(entity)})
        print(f"report     {build_report(sections, tracking).save().url}")  # creates the project if there is none
        print(f"workspace  {build_workspace(sections, tracking).save().url}")
    except Exception as error:  # of many kinds, some of them wandb's own and some of its HTTP client
        first = (str(error).splitlines() or [""])[0]
        raise TrainingError(f"--save: the wandb server did not take it ({type(error).__name__}: {first})") from None


# Sections as objects of wandb-workspaces


def build_workspace(sections: Sequence[Section], tracking: TrackingConfig) -> Any:
    """A saved view of the project's workspace, its first two sections open."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=tracking.entity,
        project=tracking.project,
        name=NAME,
        sections=[
            ws.Section(
                name=section.title,
                panels=[build_panel(panel, section) for panel in section.panels],
                is_open=section in sections[:2],
            )
            for section in sections
        ],
        settings=ws.WorkspaceSettings(x_axis=STEP),
    )


def build_report(sections: Sequence[Section], tracking: TrackingConfig) -> Any:
    """A report with one chapter per section."""
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for section in sections:
        runs = wr.Runset(name="runs")  # of the report's project; naming it would ask the server
        runs._id = stable_id(section.title)
        panels = [build_panel(panel, section) for panel in section.panels]
        blocks += [wr.H1(section.title), wr.P(section.text), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        project=tracking.project,
        entity=tracking.entity,
        title=NAME,
        description="Training, evaluation, examples, speed and health of the runs of this project.",
        blocks=blocks,
        width="fluid",
    )


def build_panel(panel: Panel, section: Section) -> Any:
    """A panel of wandb-workspaces, a new one in each call: a report's grid changes the layout of its panels."""
    import wandb_workspaces.reports.v2 as wr

    keys = list(panel.keys)
    built: Any
    if panel.kind in ("lines", "histograms"):
        built = wr.LinePlot(title=panel.title, x=STEP, y=keys)
    elif panel.kind == "machine":
        built = wr.LinePlot(title=panel.title, x="RelativeTime(Wall)", metric_regex=keys[0])
    elif panel.kind == "bars":
        built = wr.BarPlot(title=panel.title, metrics=keys)
    elif panel.kind == "images":
        built = wr.MediaBrowser(title=panel.title, media_keys=keys)
    elif panel.kind == "table":
        built = wr.WeavePanelSummaryTable(table_name=keys[0], layout=wr.Layout(w=WHOLE_WIDTH, h=10))
    else:
        kind = keys[0].rpartition("/")[2].removesuffix("_table")
        chart, fields = CONFUSION if kind == "confusion" else ("wandb/bar/v0", {"label": "class", "value": kind})
        table = {"summaryTable": {"tableKey": keys[0]}}
        title = {"title": panel.title}
        built = wr.CustomChart(query=table, chart_name=chart, chart_fields=fields, chart_strings=title)
    built._id = stable_id(section.title, panel.title)
    return built


def stable_id(*names: str) -> str:
    """An id in place of wandb's random one, so that the same dashboard gives the same text."""
    return hashlib.sha256("/".join(names).encode()).hexdigest()[:12]
