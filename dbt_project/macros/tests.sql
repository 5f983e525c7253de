{#
    A data test that has passed is not run again by `dbt build` while what it reads is the same:
    its SQL, the versions of the Delta tables below it, seeds, views, and our code. It is reported
    as passed, which it would be. `dbt test` and `--full-refresh` run every test. See decision 025.
#}
{% materialization test, adapter="duckdb" %}
    {%- set key = local_md5(sql ~ run_query(
        "select inputs_state(" ~ text_literal(tojson(delta_inputs(model))) ~ ")"
    ).columns[0].values()[0]) -%}
    {%- set test = text_literal(model["unique_id"]) -%}
    {%- set passed = run_query("select key from builds.passed_tests where test = " ~ test) -%}
    {%- set known = passed.columns[0].values() | list -%}
    {%- if known == [key] and invocation_args_dict["which"] == "build" and not should_full_refresh() -%}
        {%- call statement("main", fetch_result=True) -%}
            select 0 as failures, false as should_warn, false as should_error
        {%- endcall -%}
        {{ return({"relations": []}) }}
    {%- endif -%}
    {%- set done = dbt.materialization_test_default() -%}
    {%- if load_result("main")["table"].rows[0][0] == 0 -%}
        {%- do run_query(
            "insert or replace into builds.passed_tests values (" ~ test ~ ", '" ~ key ~ "')"
        ) -%}
    {%- else -%}
        {%- do run_query("delete from builds.passed_tests where test = " ~ test) -%}
    {%- endif -%}
    {{ adapter.commit() }}
    {{ return(done) }}
{% endmaterialization %}
