"""What a campaign is to do, from the file that somebody writes to the values that the runner uses.

`draft` reads a campaign file and tells all that is wrong with it at once, by line. `definition` is what the file comes
to for the fuzzers of one build. This package imports nothing of the rest of a campaign.
"""
