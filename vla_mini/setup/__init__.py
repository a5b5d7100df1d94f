"""A run's settings -> what its training begins with. Every command that begins where train.py begins uses these functions.

settings ──demonstrations.py──▶ demonstrations, collected where they are missing ──policy.py──▶ policy, batches
"""
