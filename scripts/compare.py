"""Compare variants: train each with each seed under one budget, one run after the other, and evaluate all on the same scenes.

Runs lie in runs/<study>/ and are found again: what was finished before is not repeated. The table and the picture go into
a new folder.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from vla_mini import config


@config.main("compare")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf

    from vla_mini.comparison.figures import figures, write_comparison
    from vla_mini.comparison.runs import alone, collect_missing, rehearse, train_all
    from vla_mini.pages.comparison import comparison_table

    settings = OmegaConf.to_container(cfg)
    within = Path("runs") / cfg.name
    variants, budget = settings["variants"], settings["budget"]
    with alone():
        rehearse(variants, budget)
        output = config.new_folder(cfg.output or within / "comparisons" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
        collect_missing(variants, budget)
        trained = train_all(variants, seeds=settings["seeds"], budget=budget, within=within)
        results = write_comparison(settings | {"variants": figures(trained)}, output)
    print(comparison_table(results))
    print(output / "comparison.html")
    if trained.failures:
        print(f"compare: {len(trained.failures)} of {len(trained.runs)} runs failed; the table says why", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
