"""The commands of ``fastdigit``, a file each; :mod:`fastdigit.cli` puts them together."""
