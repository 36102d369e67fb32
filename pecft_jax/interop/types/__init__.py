"""One file for each type of adapter of huggingface/peft."""
