"""A local page to play with a policy: its scene live, where it looks, and what moves its actions.

session.py   one visitor's scene, without the web
scenes/      toy_pick's table, which a visitor can change; a dataset's episodes in the place of an environment
messages.py  what the page asks for and what it gets
server.py    the page, and a websocket for each visitor
setup.py     settings -> policies, sessions and a batch
"""
