"""The corpus of a fuzzer, kept on the host: `Corpus` is the way in. Files come to it and go from it by other means.

::

    corpora/<package>/<fuzzer>/units/<SHA-1>            a unit, under the name that libFuzzer would give it
    corpora/<package>/<fuzzer>/quarantine/<SHA-1>       one that must not come back; <SHA-1>.json says why
    corpora/<package>/<fuzzer>/manifest.json            what the corpus consists of: see pipeline.corpus.manifest

A unit is in the corpus once the manifest lists it, and its file is on the disk before. So whatever was added stays,
whenever a process is killed; a file that the manifest does not list is what a killed process has left behind, and is
removed by the next one that writes.
"""

from pipeline.corpus.corpus import Corpus
from pipeline.corpus.intake import Added, Limits, Reason
from pipeline.corpus.manifest import Coverage, Manifest, Merge, Unit

__all__ = ["Added", "Corpus", "Coverage", "Limits", "Manifest", "Merge", "Reason", "Unit"]
