"""models.yaml and the settings in it.

In: a file. Out: frozen settings, or an error that names the line. Knows nothing of what is done with a setting.
"""
