"""``autodiffusion layers MODEL``."""

from __future__ import annotations

from typing import Annotated

import typer

from autodiffusion._cli._options import (
    MODELS,
    Captions,
    Checkpoint,
    Classes,
    Classifier,
    Device,
    Dtype,
    Json,
    ModelOption,
    NullClass,
    Schedule,
    Threads,
    load_model,
)
from autodiffusion._cli._output import print_json, print_table


def layers_command(
    model: Annotated[str, typer.Argument(help=MODELS)],
    checkpoint: Checkpoint = None,
    classifier: Classifier = None,
    captions: Captions = None,
    model_option: ModelOption = None,
    classes: Classes = None,
    null_class: NullClass = None,
    schedule: Schedule = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Lists the layers that a plan may leave out, with the multiply-accumulates (MACs) that each saves a sample."""
    loaded = load_model(locals())
    loaded.check(frozenset())
    if as_json:
        return print_json(
            {"model": loaded.name, "macs": loaded.macs, "layers": [vars(layer) for layer in loaded.layers]}
        )
    from rich.table import Table

    table = Table("number", "name", "kind", "MACs", "share", title=loaded.name, title_justify="left", show_footer=True)
    for column, footer in zip(table.columns, ("", "the whole network", "", f"{loaded.macs:,}", "100.0 %"), strict=True):
        column.footer = footer
        column.justify = "left" if column.header in ("name", "kind") else "right"
    for layer in loaded.layers:
        share = f"{100 * layer.macs / loaded.macs:.1f} %"
        table.add_row(str(layer.number), layer.name, layer.kind, f"{layer.macs:,}", share)
    print_table(table)
