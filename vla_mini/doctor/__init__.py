"""What is wrong with a training run, found before hours are spent on it: settings, demonstrations, policy -> findings."""
