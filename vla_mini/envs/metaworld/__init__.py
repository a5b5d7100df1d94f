"""Meta-World's tasks for a Sawyer arm, in MuJoCo: `vla_mini/MetaWorld-v0`, with the argument `task`."""
