"""Compare variants: train each with each seed under one budget, one run after the other, and evaluate all on the same scenes.

The runs are in runs/<study>/. Those that finished before are found there and not repeated. The table and the page go into a new
folder.
"""

import sys
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.command_settings import CompareSettings


@config.main("compare")
def main(settings: "CompareSettings") -> None:
    from vla_mini.comparison.results import comparison_results
    from vla_mini.comparison.runs import Comparison, collect_missing, dry_run, exclusive, train_all
    from vla_mini.reports.comparison import comparison_table, write_comparison

    folder = Path("runs") / settings.name
    load_settings = partial(config.load, "train")
    comparison = Comparison(settings.variants, settings.seeds, settings.budget, folder, load_settings)
    with exclusive():
        dry_run(comparison)
        output = config.new_folder(settings.output or folder / "comparisons" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
        collect_missing(comparison)
        trained = train_all(comparison)
        results = comparison_results(comparison, trained, name=settings.name, question=settings.question)
        page = write_comparison(output, results)
    print(comparison_table(results))
    print(page)
    if trained.failures:
        print(
            f"compare: {len(trained.failures)} of {len(trained.runs)} runs failed; the table gives the reasons", file=sys.stderr
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
