{#
    What a stored search for personal data depends on beside the trajectories themselves: the
    rules, and the parsers, which decide where in a trajectory a text stands.
#}
{% macro personal_data_key() %}
    {%- if not execute -%} {{ return("") }} {%- endif -%}
    {%- set version = run_query("select personal_data_version()").columns[0].values()[0] -%}
    {{ return(local_md5(standardizer_key() ~ version)) }}
{% endmacro %}
