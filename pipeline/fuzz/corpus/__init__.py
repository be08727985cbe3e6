"""The corpus of a fuzzer, kept on the host: `Corpus` is the way in. Other packages carry files to guests and back.

::

    corpora/<package>/<fuzzer>/units/<SHA-1>            a unit, under the name that libFuzzer would give it
    corpora/<package>/<fuzzer>/quarantine/<SHA-1>       a unit that must not come back; <SHA-1>.json says why
    corpora/<package>/<fuzzer>/replaced/<number>/       units that a merge took out: see pipeline.fuzz.corpus.replaced
    corpora/<package>/<fuzzer>/manifest.json            what the corpus consists of: see pipeline.fuzz.corpus.manifest

A unit is in the corpus once the manifest lists it, and its file is on the disk before that. So whatever was added
stays, whenever a process is killed. A file that the manifest does not list was left behind by a killed process; the
next process that writes removes it.
"""

from pipeline.fuzz.corpus.corpus import Corpus
from pipeline.fuzz.corpus.intake import Added, CorpusLimits, LeftOut
from pipeline.fuzz.corpus.manifest import Coverage, Manifest, MergeRecord, Unit

__all__ = ["Added", "Corpus", "CorpusLimits", "Coverage", "LeftOut", "Manifest", "MergeRecord", "Unit"]
