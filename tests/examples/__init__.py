"""The worked examples of examples/, run through the real services as their READMEs say, on fewer tasks."""
