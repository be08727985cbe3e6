"""What no living owner holds, kind by kind: how it is found, and how it is removed without harm. See pipeline.gc."""
