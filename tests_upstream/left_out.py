"""Common tests that are left out, by test class and name, each with what in the design makes it so."""

_MODEL = {
    "test_bc_cache_name_forward": "the cache's older name is taken without a warning: releases before 5.24 use it",
    "test_generation_tester_mixin_inheritance": "the tests of generate are not in the source distribution",
    "test_model_base_model_prefix": "there is no model without a head inside: the base model is the model itself",
    "test_model_weights_reload_no_missing_tied_weights": "a checkpoint with missing tensors is an error",
}
_RESIZED = "words of a world model are reserved: resizing makes them live and needs the ledger they are written into"
_WORLD = _MODEL | {
    "test_init_weights_can_init_buffers": "codes and live rows come from the initialisation that this leaves out",
    "test_resize_embeddings_untied": _RESIZED,
    "test_resize_embeddings_untied_no_reinit_on_post_init": _RESIZED,
    "test_resize_tokens_embeddings": _RESIZED,
}
_ARGUMENTS = "its arguments are observations, actions and text, not settings of processors inside"
_PROCESSOR = {
    "test_call_arguments_default_none": _ARGUMENTS,
    "test_call_arguments_not_in_attributes": "the attribute `action` describes actions, the argument holds some",
    "test_call_arguments_not_in_processor_kwargs": _ARGUMENTS,
    "test_flat_kwarg_applied_when_modality_dict_lacks_it": _ARGUMENTS,
    "test_init_arguments_not_in_class_attributes": "the ledger is kept in the tokenizer, and read there",
    "test_processor_from_and_save_pretrained": "saving code of one's own adds `auto_map`, loading leaves it out",
    "test_processor_from_and_save_pretrained_as_nested_dict": "saving code of one's own adds `auto_map`",
}
_TOKENIZER = {
    "test_tokenizer_store_full_signature": "the ledger is a file of its own, not a setting in tokenizer_config.json",
}
_BORN = "with a ledger a new word is born by add_tokens; one that only a call of from_pretrained names is an error"
_LEDGER = _TOKENIZER | {
    "test_added_tokens_serialization": _BORN,
    "test_bos_token_with_add_bos_token_false": _BORN,
    "test_bos_token_with_add_bos_token_true": _BORN,
    "test_pad_token_initialization": _BORN,
}
_BACKEND = {
    "test_rust_tokenizer_add_prefix_space_0": "tokenizer.json is loaded whole, spaces as it was trained",
}

LEFT_OUT: dict[str, dict[str, str]] = {
    "LanguageModelTest": _MODEL,
    "WorldModelTest": _WORLD,
    "PanProcessorTest": _PROCESSOR,
    "TokenizerTest": _TOKENIZER,
    "TokenizerWithCodesTest": _LEDGER,
    "TokenizerBackendTest": _BACKEND,
    "TokenizerBackendWithCodesTest": _BACKEND,
}
