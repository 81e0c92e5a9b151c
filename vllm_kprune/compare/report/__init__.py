"""The report of a comparison: its contents, `report.json` and `report.html`."""
