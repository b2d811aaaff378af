"""From folders of videos to weights; the command line imports its parts one by one."""
