"""Write and read checkpoint folders: their files, what is refused in them, the record of runs, and the model card."""
