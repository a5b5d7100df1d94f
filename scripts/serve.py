"""Serve a saved policy to robots and simulators: openpi's websocket protocol, with a controller for each connection.

Clients: `vla_mini.serving.Client`, openpi's own `openpi-client`, or any other that speaks its protocol. GET /healthz says OK.

    python scripts/serve.py policy=runs/toy_pick/latest/policy
    python scripts/serve.py policy=DIR host=0.0.0.0 port=8000 api_key=SECRET execute=4
"""

from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import ServeSettings


@config.main("serve")
def main(settings: "ServeSettings") -> None:
    import asyncio
    import ssl

    from vla_mini.export import load_policy
    from vla_mini.utils.errors import as_value_error

    try:
        from vla_mini.serving.server import PolicyServer, run_until_a_signal
    except ModuleNotFoundError as error:
        raise ValueError(f"the package {error.name} is missing: pip install 'vla-mini[serve]'") from error
    tls = None
    if settings.ssl_certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with as_value_error(f"ssl_certificate={settings.ssl_certificate}", OSError):
            tls.load_cert_chain(settings.ssl_certificate, settings.ssl_key)
    options = {"num_steps": settings.num_steps, "trust_remote_code": settings.trust_remote_code}
    policy = load_policy(settings.policy, **options)
    acting = {"execute": settings.execute, "ensemble": settings.ensemble, "seed": settings.seed}
    server = PolicyServer(policy, **acting, keys=settings.keys, debug=settings.debug)

    def started(port: int) -> None:
        config.start_work()
        scheme, rows = "wss" if tls else "ws", server.metadata["keys"].items()
        print(f"serving {settings.policy} at {scheme}://{settings.host}:{port}", flush=True)
        print("\n".join(f"  {name}: {' or '.join(keys)}" for name, keys in rows), flush=True)

    listening = {"host": settings.host, "port": settings.port, "tls": tls, "started": started}
    api_key = None if settings.api_key == "none" else settings.api_key
    with as_value_error(f"host={settings.host} port={settings.port}", OSError):
        options = listening | {"api_key": api_key, "max_message_size": settings.max_message_mb << 20}
        asyncio.run(run_until_a_signal(server, **options))


if __name__ == "__main__":
    main()
