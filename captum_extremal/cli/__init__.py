"""The command line, see `captum_extremal.cli.main`."""
