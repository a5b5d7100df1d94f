"""See what is in a dataset, and what is wrong with it: episodes, states, actions, tasks and findings, on one page.

Writes browse.html and browse.json into the new folder `output`. The exit code is 1 if something is wrong. Nothing is written
beside the dataset.

    python scripts/browse.py data=data/mine output=browse
    python scripts/browse.py data=lerobot/pusht data.fps=5 output=browse
"""

import time
from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import BrowseSettings


@config.main("browse")
def main(settings: "BrowseSettings") -> None:
    from vla_mini.data.reader import read_dataset
    from vla_mini.doctor import images
    from vla_mini.doctor.checks import check_recordings
    from vla_mini.doctor.finding import describe, summary
    from vla_mini.reports.browse import STILLS, thumbnail_size, write_report

    start = time.perf_counter()
    data = read_dataset(**settings.data.reading(), cache="none")
    data = data._replace(frames=data.frames.preview(thumbnail_size(data.features.image_size)))
    output = config.new_folder(settings.output)
    scan = images.scan(data, episodes=settings.examined_episodes, stills=STILLS)
    found = []
    for finding in check_recordings(data, lambda: scan):
        print(describe(finding), flush=True)
        found.append(finding)
    page = write_report(output, settings.data.root, data, scan, found, episodes=settings.episodes, started=start)
    print(f"{summary(found)}; {time.perf_counter() - start:.0f} s; {page}")
    if any(finding.status == "fail" for finding in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
