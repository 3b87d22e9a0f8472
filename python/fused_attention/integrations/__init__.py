"""Drop-in doors into other libraries; importing one of these modules only registers it there."""
