"""What acts: gymnasium environments as senses and actions, and scripted policies."""
