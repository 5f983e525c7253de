{# Near duplicates: what they are is in udfs/curation/near_duplicates.py. #}


{# From which estimated similarity on two contents are near duplicates. #}
{% macro near_duplicate_similarity() -%}
cast({{ var("near_duplicate_similarity") }} as double)
{%- endmacro %}


{# What stored signatures depend on beside texts: their definition, and which bands they have. #}
{% macro signature_key() %}
    {%- if not execute -%} {{ return("") }} {%- endif -%}
    {%- set version = run_query(
        "select signature_version(" ~ near_duplicate_similarity() ~ ")"
    ).columns[0].values()[0] -%}
    {{ return(local_md5(standardizer_key() ~ version)) }}
{% endmacro %}


{# What stored links depend on beside signatures: the threshold itself. #}
{% macro link_key() %}
    {%- if not execute -%} {{ return("") }} {%- endif -%}
    {{ return(local_md5(signature_key() ~ var("near_duplicate_similarity"))) }}
{% endmacro %}


{# In a select list: one row for every item of a list. #}
{% macro each_of(items) %}{{ return(adapter.dispatch("each_of")(items)) }}{% endmacro %}
{% macro duckdb__each_of(items) %}unnest({{ items }}){% endmacro %}
{% macro spark__each_of(items) %}explode({{ items }}){% endmacro %}


{# A link to another content, and none. #}
{% macro near_duplicate_link(content_sha256, similarity) %}{{ return(adapter.dispatch("near_duplicate_link")(content_sha256, similarity)) }}{% endmacro %}
{% macro duckdb__near_duplicate_link(content_sha256, similarity) %}{'content_sha256': {{ content_sha256 }}, 'similarity': {{ similarity }}}{% endmacro %}
{% macro spark__near_duplicate_link(content_sha256, similarity) %}named_struct('content_sha256', {{ content_sha256 }}, 'similarity', {{ similarity }}){% endmacro %}

{% macro no_links() %}{{ return(adapter.dispatch("no_links")()) }}{% endmacro %}
{% macro duckdb__no_links() %}[]{% endmacro %}
{% macro spark__no_links() %}array(){% endmacro %}


{# All edges of a graph as one list. #}
{% macro edge_list(one, other) %}{{ return(adapter.dispatch("edge_list")(one, other)) }}{% endmacro %}
{% macro duckdb__edge_list(one, other) %}list({'one': {{ one }}, 'other': {{ other }}}){% endmacro %}
{% macro spark__edge_list(one, other) %}collect_list(named_struct('one', {{ one }}, 'other', {{ other }})){% endmacro %}
