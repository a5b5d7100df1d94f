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
from pathlib import Path
from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import CompareSettings


@config.main("compare")
def main(settings: "CompareSettings") -> None:
    from vla_mini.comparison.results import comparison_results
    from vla_mini.comparison.runs import dry_run, exclusive, train_all, variant_settings
    from vla_mini.reports.comparison import comparison_table, write_comparison
    from vla_mini.setup.demonstrations import collect_missing

    with exclusive(settings):
        dry_run(settings)
        output = config.new_folder(settings.output or config.default_output(None, "comparisons", Path("runs") / settings.name))
        for variant in settings.variants:  # before the runs, which are identified by the demonstrations, too
            collect_missing(variant_settings(settings, variant))
        runs, speeds = train_all(settings)
        results = comparison_results(settings, runs, speeds)
        page = write_comparison(output, results)
    print(comparison_table(results))
    print(page)
    if failed := sum(run.failure is not None for run in runs):
        print(f"compare: {failed} of {len(runs)} runs failed; the table gives the reasons", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
