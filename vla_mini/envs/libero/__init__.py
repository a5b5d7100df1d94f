"""LIBERO's household tasks for a Panda arm, in MuJoCo: `vla_mini/LiberoSpatial-v0` and the other suites."""
