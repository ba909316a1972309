"""Published guidelines as plain functions: which rule holds, why, and what can't be told and why not.

They decide nothing that a physician decides: research use only, not for primary diagnosis.
"""
