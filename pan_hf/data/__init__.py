"""What reads and writes the disk: recordings, their episodes, their windows, and data of other kinds."""
