"""Weight Fixing Networks: the whole network on few shared values."""
