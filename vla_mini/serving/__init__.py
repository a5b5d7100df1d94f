"""A policy in one process, a robot or a simulator in another: openpi's websocket protocol. Importing it loads no torch."""

from vla_mini.serving.client import Client

__all__ = ["Client"]
