"""Tool calls in the text that models write: their formats, an incremental parser, and grammars that make them valid."""
