"""Play with a saved policy on a local page: its scene live, where it looks, and what moves its actions.

python scripts/play.py policy=runs/toy_pick/latest/policy
python scripts/play.py run=runs/toy_pick/latest
python scripts/play.py policy=DIR data=DIR
"""

from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import PlaySettings


@config.main("play")
def main(settings: "PlaySettings") -> None:
    from vla_mini.utils.errors import as_value_error

    try:
        from vla_mini.play.server import listen, make_server, open_page
    except ModuleNotFoundError as error:
        raise ValueError(f"the package {error.name} is missing: pip install 'vla-mini[play]'") from error
    from vla_mini.play.setup import make_play

    play = make_play(settings)
    with as_value_error(f"host={settings.host} port={settings.port}", OSError):
        listening = listen(settings.host, settings.port)
    config.start_work()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{listening.getsockname()[1]}/"
    print(f"play with {settings.policy or settings.run} at {address} (Ctrl-C ends it)", flush=True)
    if settings.open:
        open_page(address)
    make_server(play).run(sockets=[listening])


if __name__ == "__main__":
    main()
