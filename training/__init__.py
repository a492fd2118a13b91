"""The training stages of section 5.3, each a Trainer-based script: what is trained, on what, minimising what."""
