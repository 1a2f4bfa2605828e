"""What `vader plan` counts beside what a GPU has measured, and how much of the chip's rate a step uses.

    python benchmarks/planned.py [FOLDER] [--out FILE]

Reads the folder's `full_size_*.json` and `on_gpu.json`; needs no GPU itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from full_size import Case, full_size_recipe
from measuring import GIB, RESULTS, console, run_script, write_result
from rich.table import Table

from vader.errors import UserError
from vader.planning.step import Forecast, forecast
from vader.recipe import Recipe
from vader.recipe.files import in_one_line


@dataclass(frozen=True)
class Chip:
    """A GPU by name, and the operations a second of its matrix products in bf16."""

    name: str
    rate: float

    @classmethod
    def of(cls, folder: Path) -> Chip:
        """Raises `UserError` where nobody has measured one."""
        file = folder / "on_gpu.json"
        if not file.is_file():
            raise UserError(f"{folder} has no on_gpu.json: run benchmarks/gpu.sh on a GPU first")
        result = json.loads(file.read_text(encoding="utf-8"))
        return cls(result["hardware"]["gpu"], result["operations_per_second"]["bf16"])


def measured_cases(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every case that ran, with the file's result that it is of."""
    for file in sorted(folder.glob("full_size_*.json")):
        result = json.loads(file.read_text(encoding="utf-8"))
        for case in result.get("cases", ()):
            if "peak_memory" in case:
                yield result, case


def recipe_of(result: dict[str, Any], case: dict[str, Any]) -> Recipe:
    """The recipe that a case ran with: the file's, which may be older than the package's, changed by the case."""
    settings, size = result["settings"], tuple(map(int, case["size"].split("x")[1:]))
    memory = json.dumps(settings["memory"]).replace("{", "{{").replace("}", "}}")
    shipped = (f"memory={memory}", f"sampling.guidance_batched={json.dumps(settings['sampling']['guidance_batched'])}")
    changes = Case((*shipped, *case["overrides"]), case["sees"], case["whole"])
    return full_size_recipe(result["model"], (size[0], size[1]), changes)


GRAINS = {None: "nothing recomputed", "blocks": "`recompute`", "layers": "`of: layers`", "nested": "`of: nested`"}


def way_of(recipe: Recipe) -> str:
    """What lowers the memory of a recipe, in words: recipes are shipped with other settings as time goes by."""
    techniques = {part.name: part.options for part in recipe.memory}
    grain = techniques["recompute"].get("of", "blocks") if "recompute" in techniques else None
    calls = "guidance in one call" if recipe.sampling.guidance_batched else "two calls"
    prefix = recipe.sampling.prefix.model_dump(mode="json", exclude_defaults=True)
    cheaper = [f"`prefix.{key}: {in_one_line(value)}`" for key, value in prefix.items()]
    return ", ".join([GRAINS[grain], calls, *(name for name in techniques if name != "recompute"), *cheaper])


def beside(chip: Chip, result: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """A case's counted and measured peak, `ratio` counted to measured; its operations, and with its seconds the `share`
    that they are of what the chip could do in that time. Or why nothing could be counted. `earlier`: it was measured
    on an earlier state of this code, and has not been since."""
    about = {"model": result["model"], "gpu": result["hardware"]["gpu"], "earlier": result.get("earlier", False)}
    recipe = recipe_of(result, case)
    about |= {name: case[name] for name in ("size", "case", "steps")} | {"way": way_of(recipe)}
    try:
        found = forecast(recipe)
    except UserError as error:
        return about | {"error": str(error)}
    measured = case["peak_memory"]["total"]
    peaks = {"counted": found.peak, "measured": measured, "ratio": found.peak / measured}
    return about | peaks | {"operations": found.operations} | use_of(chip, result, case, found)


def use_of(chip: Chip, result: dict[str, Any], case: dict[str, Any], found: Forecast) -> dict[str, float]:
    """Nothing where no seconds were taken, or on another chip."""
    if "seconds" not in case or result["hardware"]["gpu"] != chip.name:
        return {}
    seconds = case["seconds"]["total"]
    return {"seconds": seconds, "share": found.operations / seconds / chip.rate}


def table(rows: list[dict[str, Any]]) -> Table:
    shown = Table("model", "size", "case", "counted, GiB", "measured", "ratio", "s", "of the chip's rate")
    for row in rows:
        if "error" in row:
            shown.add_row(row["model"], row["size"], row["case"], row["error"])
            continue
        peaks = [f"{row['counted'] / GIB:.1f}", f"{row['measured'] / GIB:.1f}", f"{row['ratio']:.3f}"]
        use = [f"{row['seconds']:.1f}", f"{row['share']:.0%}"] if "share" in row else []
        shown.add_row(row["model"], row["size"], row["case"], *peaks, *use)
    return shown


def main() -> None:
    line = argparse.ArgumentParser(description="Plans beside what a GPU has measured, and the use of the chip.")
    line.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="default: benchmarks/results")
    line.add_argument("--out", type=Path, metavar="FILE", help="default: plan_gpu.json in the folder")
    asked = line.parse_args()
    chip, out = Chip.of(asked.folder), asked.out or asked.folder / "plan_gpu.json"
    settings = {"gpu": chip.name, "bf16_operations_per_second": chip.rate}
    rows: list[dict[str, Any]] = []
    for result, case in measured_cases(asked.folder):
        console.print(f"{result['model']} {case['size']}, {case['case']}")
        rows.append(beside(chip, result, case))
        write_result(out, "planned", torch.device("meta"), settings, {"cases": rows})
    console.print(table(rows))


if __name__ == "__main__":
    run_script(main)
