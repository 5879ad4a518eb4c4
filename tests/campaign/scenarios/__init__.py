"""The scenarios: every module here is loaded by the campaign. How to write one stands in `tests.campaign`."""
