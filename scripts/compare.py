"""Compare variants: train each with each seed under one budget, one run after the other, and evaluate all on the same scenes.

The runs are in runs/<study>/. Those that finished before are found there and not repeated. The table and the page go into a new
folder.

All other settings are those of scripts/train.py, for every variant. Where one has several values, separated by commas, each
makes a variant. Variants that differ in more have names: variants.NAME="arguments of train.py".

    python scripts/compare.py action=regression,flow budget.steps=400
    python scripts/compare.py optimizer=adam optimizer.lr=1e-3,3e-3 seeds=[0] budget.steps=400 experiment=toy_pick
    python scripts/compare.py variants.one="action=flow" variants.two="action=flow optimizer.lr=1e-3" budget.seconds=60
    python scripts/compare.py study=words parameters.encoder=DIR
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import CompareSettings


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
        output = config.new_folder(settings.output or config.default_output(None, "comparisons", folder))
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
