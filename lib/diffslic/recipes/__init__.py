"""How each shipped network is trained: its data, loss, schedule, validation and model card, one file per network."""
